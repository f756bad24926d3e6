//! The frames of a binary batch (docs/api.md has every byte): a length in four bytes, big endian, then as many bytes.

/// How many bytes say a frame's length.
const LENGTH: usize = 4;

/// Finds the frames in bytes that come in pieces of any size. Only a frame that two pieces share is copied.
pub struct Frames {
    limit: usize,
    /// The beginning of a frame whose end has not come yet.
    carried: Vec<u8>,
    /// Whether `carried` was given out and has to go.
    is_spent: bool,
    /// How many bytes of a frame that is too long are still to come.
    to_skip: usize,
}

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'d> {
    /// Its bytes, without the length.
    Whole(&'d [u8]),
    /// One that is longer than the limit. Its bytes are passed over.
    TooLong,
}

impl Frames {
    /// A finder of frames of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            carried: Vec::new(),
            is_spent: false,
            to_skip: 0,
        }
    }

    /// The next frame, and takes its bytes off `data`; `None` when more bytes must come first, and `data` is then empty.
    pub fn next<'f, 'd: 'f>(&'f mut self, data: &mut &'d [u8]) -> Option<Frame<'f>> {
        if std::mem::take(&mut self.is_spent) {
            // A long frame's room is not kept for the short ones that follow.
            self.carried = Vec::new();
        }
        let skipped = self.to_skip.min(data.len());
        *data = &data[skipped..];
        self.to_skip -= skipped;

        if self.carried.is_empty()
            && let Some((length, rest)) = data.split_first_chunk::<LENGTH>()
        {
            let length = u32::from_be_bytes(*length) as usize;
            if length > self.limit {
                let skipped = length.min(rest.len());
                *data = &rest[skipped..];
                self.to_skip = length - skipped;
                return Some(Frame::TooLong);
            }
            if let Some((frame, rest)) = rest.split_at_checked(length) {
                *data = rest;
                return Some(Frame::Whole(frame));
            }
        }
        self.carry(data, LENGTH);
        let length = u32::from_be_bytes(*self.carried.first_chunk::<LENGTH>()?) as usize;
        if length > self.limit {
            self.carried.clear();
            let skipped = length.min(data.len());
            *data = &data[skipped..];
            self.to_skip = length - skipped;
            return Some(Frame::TooLong);
        }
        self.carry(data, LENGTH + length);
        if self.carried.len() < LENGTH + length {
            return None;
        }
        self.is_spent = true;
        Some(Frame::Whole(&self.carried[LENGTH..]))
    }

    /// How many bytes the frame has of which a part has come; 0 if that isn't known yet.
    pub fn coming(&self) -> usize {
        match self.carried.first_chunk::<LENGTH>() {
            Some(length) if !self.is_spent => u32::from_be_bytes(*length) as usize,
            _ => 0,
        }
    }

    /// Gives up the frame of which a part has come, as if it were too long; whoever calls answers for it.
    pub fn pass_over(&mut self) {
        self.to_skip = (LENGTH + self.coming()).saturating_sub(self.carried.len());
        self.carried = Vec::new();
    }

    /// Whether the bytes so far ended with a frame.
    pub fn is_between_frames(&self) -> bool {
        self.to_skip == 0 && (self.carried.is_empty() || self.is_spent)
    }

    fn carry(&mut self, data: &mut &[u8], length: usize) {
        let missing = length.saturating_sub(self.carried.len()).min(data.len());
        self.carried.extend_from_slice(&data[..missing]);
        *data = &data[missing..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(limit: usize, pieces: &[&[u8]]) -> (Vec<Option<Vec<u8>>>, bool) {
        let mut frames = Frames::new(limit);
        let mut found = Vec::new();
        for piece in pieces {
            let mut data = *piece;
            while let Some(frame) = frames.next(&mut data) {
                found.push(match frame {
                    Frame::Whole(bytes) => Some(bytes.to_vec()),
                    Frame::TooLong => None,
                });
            }
            assert!(data.is_empty(), "what is no whole frame is kept");
        }
        (found, frames.is_between_frames())
    }

    proptest! {
        #[test]
        fn finds_the_same_frames_however_their_bytes_come(
            items in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            missing in 0..3usize,
        ) {
            const LIMIT: usize = 15;
            let mut bytes: Vec<u8> = Vec::new();
            for item in &items {
                bytes.extend((item.len() as u32).to_be_bytes());
                bytes.extend(item);
            }
            let whole = bytes.len();
            bytes.truncate(whole.saturating_sub(missing));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            let (frames, is_between) = found(LIMIT, &pieces);
            let mut expected: Vec<Option<Vec<u8>>> = items.iter().map(|item| (item.len() <= LIMIT).then(|| item.clone())).collect();
            prop_assert_eq!(is_between, bytes.len() == whole);
            if bytes.len() < whole {
                // A frame that is too long is reported when its length is known; another one only when it is whole.
                let last = expected.pop().expect("something was cut off");
                let length = items[items.len() - 1].len();
                if last.is_none() && length >= missing {
                    expected.push(None);
                }
            }
            prop_assert_eq!(frames, expected);
        }
    }

    #[test]
    fn a_frame_that_is_given_up_is_passed_over_to_its_end() {
        let bytes = [&[0, 0, 0, 100][..], &[7; 100], &[0, 0, 0, 1, b'x']].concat();
        for first in 4..104 {
            let mut frames = Frames::new(200);
            let mut data = &bytes[..first];
            assert!(frames.next(&mut data).is_none());
            assert_eq!(frames.coming(), 100);
            frames.pass_over();
            assert_eq!(frames.coming(), 0);
            let mut data = &bytes[first..];
            assert_eq!(frames.next(&mut data), Some(Frame::Whole(b"x")), "{first}");
            assert!(frames.next(&mut data).is_none() && frames.is_between_frames());
        }
    }
}
