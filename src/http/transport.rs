//! TCP connections, in the clear or over TLS, from being accepted to their first request.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

use super::{connection::Stream, identity::Identity, tls::Tls};

/// A TCP connection that requests are read from.
pub(crate) enum Transport {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// A TCP connection as it was accepted.
pub(crate) struct Accepted {
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
}

/// Accepts the next connection. Nothing is read from it yet, so that whoever is silent keeps nobody waiting.
pub(crate) async fn accept(listener: &TcpListener, tls: Option<&Arc<Tls>>) -> io::Result<Accepted> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(Accepted {
        stream,
        tls: tls.cloned(),
    })
}

impl Accepted {
    /// Shakes hands, if there is TLS; none if that came to nothing. Whoever waits for it limits its time.
    pub(crate) async fn shake_hands(self) -> Option<(Transport, Identity)> {
        match self.tls {
            None => Some((Transport::Plain(self.stream), Identity::NotAsked)),
            // In a box: a handshake's state is large, and every connection in the clear would pay for it.
            Some(tls) => Box::pin(async move { tls.handshake(self.stream).await }).await,
        }
    }
}

impl Stream for Transport {}

macro_rules! delegate {
    ($self:ident, $stream:ident => $poll:expr) => {
        match $self.get_mut() {
            Transport::Plain(stream) => {
                let $stream = Pin::new(stream);
                $poll
            }
            #[cfg(feature = "tls")]
            Transport::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $poll
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_shutdown(cx))
    }
}
