//! The seam between a listener's sockets and the connections served on them.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

/// A source of connections.
pub(crate) trait Listener: Sync {
    type Pending: PendingConnection;

    async fn accept(&self) -> io::Result<Self::Pending>;
}

/// A connection that was accepted but has not been read from.
pub(crate) trait PendingConnection: Send + 'static {
    type Io: ConnectionIo;
    type Peer: Send;

    /// Returns the peer, where the kernel identifies it before the first byte.
    fn peer(&self) -> Option<&Self::Peer> {
        None
    }

    /// Completes what precedes the first request, such as a TLS handshake. Returns None on failure.
    ///
    /// The peer sets the pace, so this runs in the connection's own task, and the caller must apply
    /// a timeout.
    fn establish(self) -> impl Future<Output = Option<(Self::Io, Self::Peer)>> + Send;
}

/// The byte stream of a connection.
pub(crate) trait ConnectionIo: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> ConnectionIo for T {}
