//! Connections to the ops listeners of sidecars, with or without TLS.

use std::{io, path::PathBuf};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use super::{CONNECT_TIMEOUT, request::Target};
use crate::{config::FleetTls, model::CertificateName};

/// TLS settings for the ops listeners of sidecars, or for a hub.
#[derive(Debug, Clone, Default)]
pub struct OpsTls {
    /// CA certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate chain and its key (PEM).
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name to expect in certificates instead of the URL's host.
    pub name: Option<CertificateName>,
}

impl From<FleetTls> for OpsTls {
    fn from(settings: FleetTls) -> Self {
        Self {
            ca_file: settings.ca_file,
            client: settings.client,
            name: settings.name,
        }
    }
}

/// A connection with or without TLS.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Connects to ops listeners.
pub(super) struct Connector {
    #[cfg(feature = "tls")]
    tls: Option<tls::Connector>,
}

impl Connector {
    /// Creates a connector. TLS files are read only if `needs_tls`.
    ///
    /// # Errors
    /// A TLS file can't be used.
    #[cfg_attr(
        not(feature = "tls"),
        allow(unused_variables, reason = "unused in builds without TLS")
    )]
    pub(super) fn new(settings: &OpsTls, needs_tls: bool) -> Result<Self, String> {
        Ok(Self {
            #[cfg(feature = "tls")]
            tls: if needs_tls {
                Some(tls::Connector::new(settings)?)
            } else {
                None
            },
        })
    }

    /// Connects to an ops listener. An error is a message for the operator.
    pub(super) async fn connect(&self, to: &Target<'_>) -> Result<Box<dyn Connection>, String> {
        let url = to.url;
        let stream = soon(TcpStream::connect((url.host(), url.port()))).await?;
        if !url.is_tls() {
            return Ok(Box::new(stream));
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return Ok(Box::new(tls.connect(to.host, stream).await?));
        }
        Err("this build lacks TLS (feature `tls`)".into())
    }
}

/// Limits the time of a connection attempt, so that dead addresses don't cost a whole request's.
pub(super) async fn soon<T>(connecting: impl Future<Output = io::Result<T>>) -> Result<T, String> {
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
    }
}

#[cfg(feature = "tls")]
mod tls {
    use std::{io, sync::Arc};

    use rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
        SignatureScheme,
        client::{
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
            verify_server_cert_signed_by_trust_anchor,
        },
        crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
        server::ParsedCertificate,
    };
    use tokio::net::TcpStream;
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::OpsTls;
    use crate::{
        backend::{Identity, client_config, trusted_roots},
        model::CertificateName,
        wire::CertificateNames,
    };

    pub(super) struct Connector {
        config: Arc<ClientConfig>,
        /// Expected instead of the URL's host.
        name: Option<ServerName<'static>>,
    }

    impl Connector {
        pub(super) fn new(settings: &OpsTls) -> Result<Self, String> {
            let identity = Identity {
                ca_file: settings.ca_file.clone(),
                client: settings.client.clone(),
            };
            let mut config = client_config(&identity)?;
            let name = match &settings.name {
                None => None,
                Some(CertificateName::Dns(name)) => Some(
                    ServerName::try_from(name.clone())
                        .map_err(|error| format!("{name}: {error}"))?,
                ),
                Some(uri) => {
                    let provider = Arc::clone(config.crypto_provider());
                    let by_uri = ByUri {
                        roots: trusted_roots(&identity)?,
                        provider,
                        name: uri.clone(),
                    };
                    config
                        .dangerous()
                        .set_certificate_verifier(Arc::new(by_uri));
                    None
                }
            };
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(Self {
                config: Arc::new(config),
                name,
            })
        }

        pub(super) async fn connect(
            &self,
            host: &str,
            stream: TcpStream,
        ) -> Result<TlsStream<TcpStream>, String> {
            let name = match &self.name {
                Some(name) => name.clone(),
                None => ServerName::try_from(host.to_owned())
                    .map_err(|error| format!("{host}: {error}"))?,
            };
            TlsConnector::from(Arc::clone(&self.config))
                .connect(name, stream)
                .await
                .map_err(reason)
        }
    }

    /// Describes a handshake error, with a hint.
    fn reason(error: io::Error) -> String {
        use CertificateError::{NotValidForName, NotValidForNameContext, UnknownIssuer};
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                "its certificate is for another name; set the expected name (--sidecar-name, or \
                 `tls.name` in the fleet file)"
                    .into()
            }
            Some(Error::InvalidCertificate(UnknownIssuer)) => {
                "its certificate is from an unknown CA; trust a CA (--sidecar-ca, or `tls.ca_file` \
                 in the fleet file)"
                    .into()
            }
            _ => error.to_string(),
        }
    }

    /// Like rustls' own verifier, but expects a URI as the name (SPIFFE X.509-SVID §5.2).
    #[derive(Debug)]
    struct ByUri {
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
        name: CertificateName,
    }

    impl ServerCertVerifier for ByUri {
        fn verify_server_cert(
            &self,
            certificate: &CertificateDer<'_>,
            intermediates: &[CertificateDer<'_>],
            _host: &ServerName<'_>,
            _ocsp_response: &[u8],
            now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            let algorithms = self.provider.signature_verification_algorithms.all;
            let parsed = ParsedCertificate::try_from(certificate)?;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                intermediates,
                now,
                algorithms,
            )?;
            if CertificateNames::of(certificate).are_on(std::slice::from_ref(&self.name)) {
                Ok(ServerCertVerified::assertion())
            } else {
                Err(CertificateError::NotValidForName.into())
            }
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(
                message,
                certificate,
                signature,
                &self.provider.signature_verification_algorithms,
            )
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(
                message,
                certificate,
                signature,
                &self.provider.signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}
