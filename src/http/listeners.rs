//! The three listeners: the applications' Unix socket and TCP port, and the operators' TCP port.

use std::{io, sync::Arc};

use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::{
    accept::{Listener, PendingConnection},
    peer::{ClientCertificate, Peer, PeerCertificate},
    tls::Tls,
    token::Token,
    transport::{PendingTcp, TcpTransport, accept_tcp},
};
use crate::policy::Caller;

/// The applications' Unix socket. The kernel identifies callers (SO_PEERCRED).
pub(crate) struct AppUnixListener(pub(crate) UnixListener);

impl Listener for AppUnixListener {
    type Pending = (UnixStream, Peer);

    async fn accept(&self) -> io::Result<Self::Pending> {
        let (stream, _) = self.0.accept().await?;
        let credentials = stream.peer_cred()?;
        let peer = Peer {
            caller: Caller::Process {
                uid: credentials.uid(),
                gid: credentials.gid(),
                pid: credentials.pid(),
            },
            token: None,
            certificate: PeerCertificate::Fixed(ClientCertificate::NotRequested),
        };
        Ok((stream, peer))
    }
}

impl PendingConnection for (UnixStream, Peer) {
    type Io = UnixStream;
    type Peer = Peer;

    fn peer(&self) -> Option<&Peer> {
        Some(&self.1)
    }

    async fn establish(self) -> Option<Self> {
        Some(self)
    }
}

/// The applications' loopback TCP port. Every request must present the token.
pub(crate) struct AppTcpListener {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) token: Arc<Token>,
}

impl Listener for AppTcpListener {
    type Pending = (PendingTcp, Arc<Token>);

    async fn accept(&self) -> io::Result<Self::Pending> {
        Ok((
            accept_tcp(&self.listener, self.tls.as_ref()).await?,
            Arc::clone(&self.token),
        ))
    }
}

impl PendingConnection for (PendingTcp, Arc<Token>) {
    type Io = TcpTransport;
    type Peer = Peer;

    async fn establish(self) -> Option<(TcpTransport, Peer)> {
        let (pending, token) = self;
        let (transport, certificate) = pending.handshake().await?;
        let peer = Peer {
            caller: Caller::TokenHolder,
            token: Some(token),
            certificate,
        };
        Some((transport, peer))
    }
}

/// The operators' TCP port.
pub(crate) struct OpsListener {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Listener for OpsListener {
    type Pending = PendingTcp;

    async fn accept(&self) -> io::Result<PendingTcp> {
        accept_tcp(&self.listener, self.tls.as_ref()).await
    }
}

impl PendingConnection for PendingTcp {
    type Io = TcpTransport;
    type Peer = PeerCertificate;

    async fn establish(self) -> Option<(TcpTransport, PeerCertificate)> {
        self.handshake().await
    }
}
