//! Connections to the ops listeners of sidecars, in the clear or over TLS.

use std::path::PathBuf;

use hyper::Uri;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::model::CertificateName;

const DEFAULT_PORT: u16 = 9464;

/// How the ops listeners of sidecars are reached over TLS.
#[derive(Debug, Clone, Default)]
pub struct OpsTls {
    /// Certificates (PEM) of the authorities that are trusted, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain and its key (PEM).
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name that every sidecar's certificate has, instead of the URL's host.
    pub name: Option<CertificateName>,
}

/// Sidecars, by their ops listeners.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// Where each listens.
    pub urls: Vec<Uri>,
    /// How they are reached, where a URL is `https://`.
    pub tls: OpsTls,
}

/// A connection.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Connects to ops listeners.
pub(super) struct OpsClient {
    #[cfg(feature = "tls")]
    tls: Option<tls::Connector>,
}

impl OpsClient {
    /// For these sidecars. Files are read only if one of them needs TLS.
    ///
    /// # Errors
    /// What is wrong with a file, named.
    #[cfg_attr(
        not(feature = "tls"),
        allow(unused_variables, reason = "a build may have no TLS")
    )]
    pub(super) fn new(fleet: &Fleet) -> Result<Self, String> {
        #[cfg(feature = "tls")]
        let needs_tls = fleet
            .urls
            .iter()
            .any(|url| url.scheme_str() == Some("https"));
        Ok(Self {
            #[cfg(feature = "tls")]
            tls: if needs_tls {
                Some(tls::Connector::new(&fleet.tls)?)
            } else {
                None
            },
        })
    }

    /// Connects.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(super) async fn connect(&self, url: &Uri) -> Result<Box<dyn Connection>, String> {
        let authority = url
            .authority()
            .ok_or("the URL has no host; write http://HOST:PORT or https://HOST:PORT")?;
        let host = authority.host().trim_matches(['[', ']']);
        let is_tls = match url.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("the URL is not http://HOST:PORT or https://HOST:PORT".into()),
        };
        let address = (host, authority.port_u16().unwrap_or(DEFAULT_PORT));
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| error.to_string())?;
        if !is_tls {
            return Ok(Box::new(stream));
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return Ok(Box::new(tls.connect(host, stream).await?));
        }
        Err("this build has no TLS (the feature `tls`)".into())
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
        /// Instead of the URL's host.
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

    /// Why there is no connection, and what helps.
    fn reason(error: io::Error) -> String {
        use CertificateError::{NotValidForName, NotValidForNameContext, UnknownIssuer};
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                "its certificate is for another name; --sidecar-name says which one to expect".into()
            }
            Some(Error::InvalidCertificate(UnknownIssuer)) => {
                "its certificate is of an authority that isn't trusted; --sidecar-ca names one that is".into()
            }
            _ => error.to_string(),
        }
    }

    /// Verifies a server's certificate as usual but for its name, which is a URI (SPIFFE X.509-SVID
    /// §5.2).
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
