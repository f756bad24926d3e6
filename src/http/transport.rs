//! TCP connections, plain or over TLS.

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

use super::{
    peer::{ClientCertificate, PeerCertificate},
    tls::Tls,
};

/// An established TCP connection.
pub(crate) enum TcpTransport {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// A TCP connection before its TLS handshake, if there is one.
pub(crate) struct PendingTcp {
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
}

/// Accepts the next connection without reading from it, so that a silent peer delays no other one.
pub(crate) async fn accept_tcp(
    listener: &TcpListener,
    tls: Option<&Arc<Tls>>,
) -> io::Result<PendingTcp> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(PendingTcp {
        stream,
        tls: tls.cloned(),
    })
}

impl PendingTcp {
    /// Performs the TLS handshake, if the listener has TLS. Returns None on failure. The caller
    /// must apply a timeout.
    pub(crate) async fn handshake(self) -> Option<(TcpTransport, PeerCertificate)> {
        match self.tls {
            None => Some((
                TcpTransport::Plain(self.stream),
                PeerCertificate::Fixed(ClientCertificate::NotRequested),
            )),
            // Boxed, because a handshake's large state would otherwise be part of every connection.
            #[cfg(feature = "tls")]
            Some(tls) => {
                let handshake = Box::pin(async move { tls.handshake(self.stream).await });
                let (stream, certificate) = handshake.await?;
                Some((TcpTransport::Tls(Box::new(stream)), certificate))
            }
            #[cfg(not(feature = "tls"))]
            Some(tls) => tls.unreachable(),
        }
    }
}

macro_rules! delegate {
    ($self:ident, $stream:ident => $poll:expr) => {
        match $self.get_mut() {
            TcpTransport::Plain(stream) => {
                let $stream = Pin::new(stream);
                $poll
            }
            #[cfg(feature = "tls")]
            TcpTransport::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $poll
            }
        }
    };
}

impl AsyncRead for TcpTransport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for TcpTransport {
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
