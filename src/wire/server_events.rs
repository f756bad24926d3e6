//! Server-sent events (WHATWG HTML, §9.2), as their bytes arrive.

use std::collections::VecDeque;

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// The ID, sent as `Last-Event-ID` when reconnecting.
    pub id: Option<String>,
    /// What kind of event it is. Those of later versions are unknown.
    pub kind: String,
    /// A JSON document.
    pub data: String,
}

/// An event is longer than its reader allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event exceeds {limit} bytes")]
pub struct EventTooLong {
    limit: usize,
}

/// Parses events from chunks of any size, and holds no more than one event beyond a chunk.
pub struct EventParser {
    /// The most bytes of an event's data and the line that arrives.
    limit: usize,
    line: Vec<u8>,
    event: ServerEvent,
    has_data: bool,
    ready: VecDeque<ServerEvent>,
}

impl EventParser {
    /// Creates a parser of events of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            event: ServerEvent::default(),
            has_data: false,
            ready: VecDeque::new(),
        }
    }

    /// Adds a chunk of the stream.
    ///
    /// # Errors
    /// An event is too long. The rest of the stream can't be parsed.
    pub fn push(&mut self, mut chunk: &[u8]) -> Result<(), EventTooLong> {
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            self.add_to_line(&chunk[..end])?;
            chunk = &chunk[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.finish_line(String::from_utf8_lossy(&line).trim_end_matches('\r'));
        }
        self.add_to_line(chunk)
    }

    /// Returns the next event that is complete.
    pub fn next_event(&mut self) -> Option<ServerEvent> {
        self.ready.pop_front()
    }

    fn add_to_line(&mut self, bytes: &[u8]) -> Result<(), EventTooLong> {
        if self.line.len() + bytes.len() + self.event.data.len() > self.limit {
            return Err(EventTooLong { limit: self.limit });
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn finish_line(&mut self, line: &str) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                self.ready.push_back(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.into()),
            "event" => self.event.kind = value.into(),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments, and fields of later versions.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = ": hello\n\nid: 1-1\nevent: keyring\ndata: {\"a\":1}\n\n:\n\n\
        event:secret\r\ndata: one\ndata: two\nodd\n\ndata: incomplete";
    const LIMIT: usize = 1 << 10;

    fn event(id: Option<&str>, kind: &str, data: &str) -> ServerEvent {
        ServerEvent {
            id: id.map(str::to_owned),
            kind: kind.into(),
            data: data.into(),
        }
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_affect_events(
            cuts in prop::collection::vec(0..TEXT.len(), 0..8),
        ) {
            let mut cuts = [vec![0, TEXT.len()], cuts].concat();
            cuts.sort_unstable();
            let mut parser = EventParser::new(LIMIT);
            for ends in cuts.windows(2) {
                parser.push(&TEXT.as_bytes()[ends[0]..ends[1]]).expect("within the limit");
            }
            let events: Vec<ServerEvent> = std::iter::from_fn(|| parser.next_event()).collect();
            let expected = [
                event(Some("1-1"), "keyring", "{\"a\":1}"),
                event(None, "secret", "one\ntwo"),
            ];
            prop_assert_eq!(events, expected);
        }
    }

    #[test]
    fn an_endless_line_is_rejected() {
        let mut parser = EventParser::new(LIMIT);
        let half = vec![b'x'; LIMIT / 2];
        parser.push(&half).expect("half the limit");
        parser.push(&half).expect("the limit");
        parser.push(b"x").expect_err("over the limit");
        let whole = [&[b'x'; LIMIT][..], b"\n"].concat();
        EventParser::new(LIMIT).push(&whole).expect("the limit");
        let longer = [&[b'x'; LIMIT + 1][..], b"\n"].concat();
        EventParser::new(LIMIT)
            .push(&longer)
            .expect_err("over the limit, in one chunk");
    }

    #[test]
    fn an_endless_event_is_rejected() {
        let mut parser = EventParser::new(LIMIT);
        let line = b"data: xxxxxxxxx\n";
        let pushed = (0..LIMIT).try_for_each(|_| parser.push(line));
        assert_eq!(pushed, Err(EventTooLong { limit: LIMIT }));
        let mut parser = EventParser::new(LIMIT);
        let once = line.repeat(LIMIT);
        parser
            .push(&once)
            .expect_err("over the limit, in one chunk");
    }

    #[test]
    fn a_stream_of_any_length_may_follow() {
        let mut parser = EventParser::new(LIMIT);
        for _ in 0..LIMIT {
            parser
                .push(b": comment\nevent: a\ndata: 1\n\n")
                .expect("short");
            assert_eq!(parser.next_event(), Some(event(None, "a", "1")));
        }
        assert_eq!(parser.next_event(), None);
    }
}
