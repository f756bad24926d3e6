//! The frames of a binary batch: a big-endian length of four bytes, then that many bytes.

/// The length of a frame's length.
const LENGTH: usize = 4;

/// Finds frames in data that arrives in chunks of any size. Only a frame that spans chunks is
/// copied.
pub struct Frames {
    limit: usize,
    /// The start of a frame whose end has not arrived yet.
    carried: Vec<u8>,
    /// Whether `carried` was returned as a frame and must be cleared.
    is_spent: bool,
    /// How many bytes of a frame that is too long are still to arrive.
    to_skip: usize,
}

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'d> {
    /// The bytes after the length.
    Whole(&'d [u8]),
    /// The frame exceeds the limit. Its bytes are skipped.
    TooLong,
}

impl Frames {
    /// Finds frames of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            carried: Vec::new(),
            is_spent: false,
            to_skip: 0,
        }
    }

    /// Removes the next frame from `data`. Returns None once `data` is used up.
    pub fn next<'f, 'd: 'f>(&'f mut self, data: &mut &'d [u8]) -> Option<Frame<'f>> {
        if std::mem::take(&mut self.is_spent) {
            // A long frame's buffer is not kept for the short ones that follow.
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

    /// The length of the frame that is arriving; 0 if it is not known yet.
    pub fn partial_len(&self) -> usize {
        match self.carried.first_chunk::<LENGTH>() {
            Some(length) if !self.is_spent => u32::from_be_bytes(*length) as usize,
            _ => 0,
        }
    }

    /// Skips the rest of the frame that is arriving, like one that is too long.
    pub fn skip_partial(&mut self) {
        self.to_skip = (LENGTH + self.partial_len()).saturating_sub(self.carried.len());
        self.carried = Vec::new();
    }

    /// Whether the data so far ended with a complete frame.
    pub fn is_between_frames(&self) -> bool {
        self.to_skip == 0 && (self.carried.is_empty() || self.is_spent)
    }

    /// Moves data to `carried` until that has `length` bytes.
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

    const LIMIT: usize = 15;

    fn found(chunks: &[&[u8]]) -> (Vec<Option<Vec<u8>>>, bool) {
        let mut frames = Frames::new(LIMIT);
        let mut found = Vec::new();
        for chunk in chunks {
            let mut data = *chunk;
            while let Some(frame) = frames.next(&mut data) {
                found.push(match frame {
                    Frame::Whole(bytes) => Some(bytes.to_vec()),
                    Frame::TooLong => None,
                });
            }
            assert!(data.is_empty(), "an incomplete frame is carried over");
        }
        (found, frames.is_between_frames())
    }

    proptest! {
        #[test]
        fn finds_the_same_frames_in_any_chunks(
            items in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            missing in 0..3usize,
        ) {
            let mut bytes: Vec<u8> = Vec::new();
            for item in &items {
                bytes.extend((item.len() as u32).to_be_bytes());
                bytes.extend(item);
            }
            let whole = bytes.len();
            bytes.truncate(whole.saturating_sub(missing));
            let mut cuts: Vec<usize> = cuts
                .iter()
                .map(|cut| cut.index(bytes.len() + 1))
                .chain([0, bytes.len()])
                .collect();
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> =
                cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            let (frames, is_between) = found(&chunks);
            let mut expected: Vec<Option<Vec<u8>>> = items
                .iter()
                .map(|item| (item.len() <= LIMIT).then(|| item.clone()))
                .collect();
            prop_assert_eq!(is_between, bytes.len() == whole);
            if bytes.len() < whole {
                // A frame that is too long is reported once its length is known, others once they
                // are complete.
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
    fn a_partial_frame_can_be_skipped() {
        let bytes = [&[0, 0, 0, 100][..], &[7; 100], &[0, 0, 0, 1, b'x']].concat();
        for first in 4..104 {
            let mut frames = Frames::new(200);
            let mut data = &bytes[..first];
            assert!(frames.next(&mut data).is_none());
            assert_eq!(frames.partial_len(), 100);
            frames.skip_partial();
            assert_eq!(frames.partial_len(), 0);
            let mut data = &bytes[first..];
            assert_eq!(frames.next(&mut data), Some(Frame::Whole(b"x")), "{first}");
            assert!(frames.next(&mut data).is_none() && frames.is_between_frames());
        }
    }
}
