//! What an answer's body is: bytes that are there, or bytes that are still being made.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hyper::body::{Body, Frame, SizeHint};

use super::{activity::Busy, problem::Problem};
use crate::api::meters::Account;

/// An answer's body.
pub(crate) enum Reply {
    /// All of it.
    Whole(Bytes),
    /// Made piece by piece, while the peer takes it.
    Flow(Flow),
}

impl<B: Into<Bytes>> From<B> for Reply {
    fn from(bytes: B) -> Self {
        Self::Whole(bytes.into())
    }
}

/// Pieces of an answer, each made when the connection asks for it. An error breaks the answer off, so that nobody can take it for a
/// whole one: HTTP/1.1 ends without its last chunk or short of its length, HTTP/2 resets the stream.
pub(crate) struct Flow {
    pieces: Pin<Box<dyn Stream<Item = Result<Bytes, Problem>> + Send>>,
    /// The bytes that are still to come, if that is known.
    remaining: Option<u64>,
    /// None where the answer was counted when it began.
    account: Option<Account>,
    /// What breaks the answer off next.
    failure: Option<Problem>,
}

impl Flow {
    /// Waits for the first piece.
    ///
    /// # Errors
    /// What stands against even that one.
    pub(crate) async fn begin(
        pieces: impl Stream<Item = Result<Bytes, Problem>> + Send + 'static,
        length: Option<u64>,
        mut account: Account,
    ) -> Result<Self, Problem> {
        let mut pieces = Box::pin(pieces.peekable());
        if let Some(Err(_)) = pieces.as_mut().peek().await
            && let Some(Err(problem)) = pieces.next().await
        {
            // It is answered, and so counted, like any request that failed.
            account.cancel();
            return Err(problem);
        }
        Ok(Self {
            pieces,
            remaining: length,
            account: Some(account),
            failure: None,
        })
    }

    /// Pieces that go on for as long as the peer listens.
    pub(crate) fn endless(
        pieces: impl Stream<Item = Result<Bytes, Problem>> + Send + 'static,
    ) -> Self {
        Self {
            pieces: Box::pin(pieces),
            remaining: None,
            account: None,
            failure: None,
        }
    }

    /// Whether the answer's length is known from its beginning.
    pub(crate) fn has_length(&self) -> bool {
        self.remaining.is_some()
    }

    /// Drops the answer, which somebody else counts.
    pub(crate) fn cancel(mut self) {
        if let Some(account) = &mut self.account {
            account.cancel();
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Problem>>> {
        let piece = match self.failure.take() {
            Some(problem) => Some(Err(problem)),
            None => match ready!(self.pieces.as_mut().poll_next(cx)) {
                Some(Err(problem)) => {
                    // First the connection sends what it has, so that the peer sees an answer that breaks off and not none at all.
                    self.failure = Some(problem);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                piece => piece,
            },
        };
        if let Some(Ok(bytes)) = &piece {
            self.remaining = self
                .remaining
                .map(|remaining| remaining.saturating_sub(bytes.len() as u64));
        }
        if let Some(account) = &mut self.account {
            match &piece {
                Some(Ok(bytes)) => account.sent(bytes.len()),
                Some(Err(problem)) => account.failed(problem.code),
                None => account.succeeded(),
            }
            // Who knows an answer's length doesn't ask for more.
            if self.remaining == Some(0) {
                account.succeeded();
            }
        }
        Poll::Ready(piece)
    }
}

/// An answer was broken off, for this reason.
#[derive(Debug, thiserror::Error)]
#[error("the answer was broken off: {0}")]
pub(crate) struct BrokenOff(&'static str);

/// An answer on a connection, which keeps count of what the peer has not taken yet.
pub(crate) struct Delivery {
    reply: Option<Reply>,
    busy: Busy,
}

impl Delivery {
    pub(crate) fn new(reply: Reply, mut busy: Busy) -> Self {
        if matches!(reply, Reply::Flow(_)) {
            busy.flows();
        }
        Self {
            reply: Some(reply),
            busy,
        }
    }
}

impl Body for Delivery {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let bytes = match &mut self.reply {
            None => return Poll::Ready(None),
            Some(Reply::Flow(flow)) => match ready!(flow.poll_piece(cx)) {
                Some(Ok(bytes)) => bytes,
                Some(Err(problem)) => {
                    self.reply = None;
                    return Poll::Ready(Some(Err(BrokenOff(problem.code.as_str()))));
                }
                None => {
                    self.reply = None;
                    return Poll::Ready(None);
                }
            },
            Some(Reply::Whole(bytes)) => {
                let bytes = std::mem::take(bytes);
                self.reply = None;
                if bytes.is_empty() {
                    return Poll::Ready(None);
                }
                bytes
            }
        };
        Poll::Ready(Some(Ok(Frame::data(self.busy.hand_over(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.reply {
            None => true,
            Some(Reply::Whole(bytes)) => bytes.is_empty(),
            // Its end has to be asked for, because it may be an error.
            Some(Reply::Flow(_)) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.reply {
            None => SizeHint::with_exact(0),
            Some(Reply::Whole(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Some(Reply::Flow(flow)) => flow
                .remaining
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
