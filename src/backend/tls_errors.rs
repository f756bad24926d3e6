//! What the errors of TLS connections mean, and what to do about them.

use std::{error::Error, io};

use rustls::CertificateError;

use super::error::causes;

const OTHER_NAME: &str =
    "use an address that it names, or issue one whose subjectAltName has this one";
const OTHER_TIME: &str = "renew it, or set the clock of this machine";

/// Explains an error that has a TLS error among its causes; `None` if there is none.
pub(super) fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    causes(error).find_map(tls_error).map(describe)
}

/// An I/O error doesn't name the error that it wraps as its cause, but that error's cause. Several
/// layers wrap each other's.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        None => error.downcast_ref(),
        Some(wrapping) => tls_error(wrapping.get_ref()?),
    }
}

fn describe(error: &rustls::Error) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext,
        NotValidYet, NotValidYetContext, Other, UnknownIssuer,
    };
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            // A bad signature is that of another authority of the same name.
            UnknownIssuer | BadSignature => {
                "the server's certificate is from an authority that is not trusted \
                              here; name the authority's certificate as the backend's `ca_file`"
                    .into()
            }
            NotValidForNameContext { .. } => format!("the server's {error}; {OTHER_NAME}"),
            NotValidForName => {
                format!("the server's certificate is for another name; {OTHER_NAME}")
            }
            Expired | ExpiredContext { .. } => {
                format!("the server's certificate has expired; {OTHER_TIME}")
            }
            NotValidYet | NotValidYetContext { .. } => {
                format!("the server's certificate is not valid yet; {OTHER_TIME}")
            }
            Other(other) if other.to_string() == "CaUsedAsEndEntity" => {
                "the server's certificate is one of an authority (CA:TRUE); issue one for the \
                 server, or name this very certificate as the backend's `ca_file`"
                    .into()
            }
            Other(other) => format!("the server's certificate is invalid: {other}"),
            error => format!("the server's certificate is invalid: {error}"),
        },
        rustls::Error::InvalidMessage(_) => {
            format!("the server does not speak TLS here: {error}; is this an http:// port?")
        }
        rustls::Error::AlertReceived(_) => {
            format!("{error}; does the server require a client certificate?")
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{AlertDescription, OtherError};

    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        // As tokio-rustls and hyper-rustls wrap it.
        let explained = |error: rustls::Error| {
            explain(&io::Error::other(io::Error::other(error))).expect("TLS")
        };
        let authority =
            CertificateError::Other(OtherError(Arc::new(io::Error::other("CaUsedAsEndEntity"))));
        for (error, remedy) in [
            (CertificateError::UnknownIssuer.into(), "`ca_file`"),
            (CertificateError::BadSignature.into(), "`ca_file`"),
            (CertificateError::NotValidForName.into(), "subjectAltName"),
            (CertificateError::Expired.into(), "renew it"),
            (authority.into(), "CA:TRUE"),
            (
                rustls::Error::AlertReceived(AlertDescription::CertificateRequired),
                "client certificate",
            ),
        ] {
            let text = explained(error);
            assert!(text.contains(remedy) && !text.contains("Other("), "{text}");
        }
        assert_eq!(explain(&io::Error::other("connection refused")), None);
    }
}
