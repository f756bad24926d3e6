//! Who a client is, by its certificate.

use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::model::CertificateName;

/// What a client's certificate says of it, after an authority of ours vouched for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateNames {
    pub(crate) dns: Vec<String>,
    pub(crate) uris: Vec<String>,
}

impl CertificateNames {
    /// The names of a certificate (DER); none if it can't be read. The common name is none: RFC 9525 §2.
    pub fn of(certificate: &[u8]) -> Self {
        let mut names = Self::default();
        let Ok(certificate) = Certificate::from_der(certificate) else {
            return names;
        };
        let Ok(Some((_, alternatives))) = certificate
            .tbs_certificate()
            .get_extension::<SubjectAltName>()
        else {
            return names;
        };
        for name in alternatives.0 {
            match name {
                GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                GeneralName::UniformResourceIdentifier(uri) => names.uris.push(uri.to_string()),
                _ => {}
            }
        }
        names
    }

    /// Whether one of them is on the list; an empty list lets everybody in.
    pub fn are_on(&self, list: &[CertificateName]) -> bool {
        let is_on = |name: &CertificateName| {
            self.dns.iter().any(|dns| name.is_dns(dns))
                || self.uris.iter().any(|uri| name.is_uri(uri))
        };
        list.is_empty() || list.iter().any(is_on)
    }
}
