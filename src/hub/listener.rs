//! The listener of a hub: TCP, plain on loopback or over TLS.

use std::{io, sync::Arc};

use tokio::net::TcpListener;

use super::caller::{Caller, Callers};
use crate::http::{
    accept::{Listener, PendingConnection},
    peer::{ClientCertificate, PeerCertificate},
    tls::Tls,
    transport::{PendingTcp, TcpTransport, accept_tcp},
};

/// Where the requests of one connection come from.
pub(super) struct HubPeer {
    pub(super) certificate: PeerCertificate,
    /// The holder of the certificate.
    caller: Option<Caller>,
}

impl HubPeer {
    /// Returns who the certificate says is asking, while it is accepted.
    pub(super) fn caller(&self) -> Option<&Caller> {
        let is_accepted = self.certificate.verdict() == ClientCertificate::Accepted;
        self.caller.as_ref().filter(|_| is_accepted)
    }
}

pub(super) struct HubListener {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) callers: Arc<Callers>,
}

impl Listener for HubListener {
    type Pending = PendingPeer;

    async fn accept(&self) -> io::Result<PendingPeer> {
        Ok(PendingPeer {
            tcp: accept_tcp(&self.listener, self.tls.as_ref()).await?,
            callers: Arc::clone(&self.callers),
        })
    }
}

/// A connection before its TLS handshake.
pub(super) struct PendingPeer {
    tcp: PendingTcp,
    callers: Arc<Callers>,
}

impl PendingConnection for PendingPeer {
    type Io = TcpTransport;
    type Peer = HubPeer;

    async fn establish(self) -> Option<(TcpTransport, HubPeer)> {
        let (transport, certificate) = self.tcp.handshake().await?;
        let names = certificate.names();
        let caller = names.and_then(|names| self.callers.by_certificate(&names).cloned());
        Some((
            transport,
            HubPeer {
                certificate,
                caller,
            },
        ))
    }
}
