//! Who asks: sidecars by their identity, and operators, by bearer token or client certificate.

use std::{fmt, path::Path, sync::Arc};

use crate::{
    config::{Credential, HubRole, HubSettings, SidecarIdentity},
    crypto::{equal_in_constant_time, fingerprint},
    encoding::from_hex,
    files::{Allowed, read_private},
    http::{Accounts, account::Account, problem::Problem, share::Held},
    model::CertificateName,
    wire::{CertificateNames, Code},
};

/// The longest file of token digests: some hundreds of them.
const MAX_FILE: usize = 64 << 10;

/// Someone who may ask for something.
#[derive(Clone)]
pub(super) enum Caller {
    Sidecar(Arc<Identity>),
    Operator(Arc<Person>),
}

/// What an identity of sidecars may report as. All sidecars that share it share its part of what
/// there is a limited amount of.
pub(super) struct Identity {
    settings: SidecarIdentity,
    /// Names it in the database, over restarts and for every replica.
    pub(super) label: String,
    pub(super) account: Arc<Account>,
    /// Its instances that report.
    pub(super) instances: Held,
}

/// An operator.
pub(super) struct Person {
    pub(super) name: String,
    role: HubRole,
}

/// What a route requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Anyone.
    Open,
    /// A sidecar.
    Report,
    /// An operator of any role.
    Read,
    /// An operator who may act, or a signer.
    Act,
    /// A signer.
    Sign,
}

/// A file of token digests can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct CredentialError {
    file: String,
    reason: String,
}

/// Everyone who may ask for something.
pub(super) struct Callers {
    tokens: Vec<([u8; 32], Caller)>,
    certificates: Vec<(CertificateName, Caller)>,
}

impl Callers {
    /// Reads the files of token digests.
    ///
    /// # Errors
    /// A file can't be read, others may read it, it is malformed, or two of them hold one digest.
    pub(super) fn load(
        settings: &HubSettings,
        accounts: &Accounts,
    ) -> Result<Self, CredentialError> {
        let mut callers = Self {
            tokens: Vec::new(),
            certificates: Vec::new(),
        };
        for operator in &settings.operators {
            let person = Person {
                name: operator.name.clone(),
                role: operator.role,
            };
            callers.add(&operator.credential, Caller::Operator(Arc::new(person)))?;
        }
        for identity in &settings.identities {
            let caller = Identity {
                settings: identity.clone(),
                label: label(&identity.credential),
                account: accounts.of_another(),
                instances: Held::default(),
            };
            callers.add(&identity.credential, Caller::Sidecar(Arc::new(caller)))?;
        }
        Ok(callers)
    }

    fn add(&mut self, credential: &Credential, caller: Caller) -> Result<(), CredentialError> {
        match credential {
            Credential::Certificate(name) => self.certificates.push((name.clone(), caller)),
            Credential::Token(file) => {
                for digest in digests(file)? {
                    if self.tokens.iter().any(|(known, _)| *known == digest) {
                        let reason = "it holds a digest twice, or another table's file does";
                        return Err(CredentialError::new(file, reason));
                    }
                    self.tokens.push((digest, caller.clone()));
                }
            }
        }
        Ok(())
    }

    /// Finds the holder of a token, in a time that doesn't depend on which one it is.
    pub(super) fn by_token(&self, token: &[u8]) -> Option<&Caller> {
        let presented = fingerprint(token);
        let mut found = None;
        for (digest, caller) in &self.tokens {
            if equal_in_constant_time(digest, &presented) {
                found = Some(caller);
            }
        }
        found
    }

    /// Finds the holder of a certificate: operators first, then identities in the config's order.
    pub(super) fn by_certificate(&self, names: &CertificateNames) -> Option<&Caller> {
        let allowed = |name: &CertificateName| names.are_on(std::slice::from_ref(name));
        let found = self.certificates.iter().find(|(name, _)| allowed(name));
        found.map(|(_, caller)| caller)
    }
}

impl Caller {
    /// # Errors
    /// [`Code::Forbidden`]
    pub(super) fn require(&self, access: Access) -> Result<(), Problem> {
        let detail = match (access, self) {
            (Access::Open, _)
            | (Access::Report, Self::Sidecar(_))
            | (Access::Read, Self::Operator(_)) => return Ok(()),
            (Access::Act, Self::Operator(person)) => match person.role {
                HubRole::Operator | HubRole::Signer => return Ok(()),
                HubRole::Viewer | HubRole::Approver => "this requires the role operator",
            },
            (Access::Sign, Self::Operator(person)) if person.is_signer() => return Ok(()),
            (Access::Sign, Self::Operator(_)) => "this requires the role signer",
            (Access::Report, Self::Operator(_)) => "this is for sidecars, not for operators",
            (Access::Read | Access::Act | Access::Sign, Self::Sidecar(_)) => {
                "this is for operators, not for sidecars"
            }
        };
        Err(Problem::new(Code::Forbidden, detail))
    }
}

impl Person {
    pub(super) fn is_signer(&self) -> bool {
        self.role == HubRole::Signer
    }
}

impl Identity {
    /// # Errors
    /// [`Code::Forbidden`] if another identity, with this label, sent the instance's first report.
    pub(super) fn require_own(&self, label: &str) -> Result<(), Problem> {
        if self.label == label {
            return Ok(());
        }
        Err(Problem::new(
            Code::Forbidden,
            "another identity sent the first report of this instance",
        ))
    }

    /// # Errors
    /// [`Code::Forbidden`] if its sidecars may not have this name and workload.
    pub(super) fn require(&self, name: &str, workload: &str) -> Result<(), Problem> {
        let SidecarIdentity {
            names, workloads, ..
        } = &self.settings;
        let has_name = names.is_empty() || names.iter().any(|pattern| pattern.covers(name));
        let has_workload = workloads.iter().any(|pattern| pattern.covers(workload));
        if has_name && has_workload {
            return Ok(());
        }
        let which = if has_name { "workload" } else { "name" };
        Err(Problem::new(
            Code::Forbidden,
            format!("no [[sidecar_identity]] of this credential lists the sidecar's {which}"),
        ))
    }
}

/// The identity is told by its position in memory.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl CredentialError {
    fn new(file: &Path, reason: impl Into<String>) -> Self {
        Self {
            file: file.display().to_string(),
            reason: reason.into(),
        }
    }
}

/// A token may be replaced, so the file that lists it counts.
fn label(credential: &Credential) -> String {
    match credential {
        Credential::Token(file) => file.display().to_string(),
        Credential::Certificate(name) => name.to_string(),
    }
}

/// Reads a file with the SHA-256 of a token at the start of each line, as sha256sum prints it.
fn digests(file: &Path) -> Result<Vec<[u8; 32]>, CredentialError> {
    let failed = |reason: String| CredentialError::new(file, reason);
    let what = "the file of token digests (`token_file`)";
    let bytes = read_private(file, what, Allowed::OwnerAndGroup, MAX_FILE + 1)
        .map_err(|error| failed(error.to_string()))?;
    if bytes.len() > MAX_FILE {
        return Err(failed(format!("it has more than {MAX_FILE} bytes")));
    }
    let mut digests = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let word = line.split(u8::is_ascii_whitespace).next().unwrap_or(line);
        let digest = from_hex(word).ok_or_else(|| {
            failed(format!(
                "line {}: expected the SHA-256 of a token, 64 hexadecimal digits; create one with: \
                 printf %s \"$(cat TOKEN_FILE)\" | sha256sum",
                index + 1
            ))
        })?;
        digests.push(digest);
    }
    if digests.is_empty() {
        return Err(failed("it holds no digest".into()));
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::crypto::to_hex;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&file, text).expect("write");
        file
    }

    #[test]
    fn digests_are_read_as_sha256sum_prints_them() {
        let [first, second] = [[1; 32], [2; 32]];
        let text = format!("# tokens\n{}  -\n\n{}\n", to_hex(&first), to_hex(&second));
        let read = digests(file(&text).path()).expect("valid");
        assert_eq!(read, [first, second]);
    }

    #[test]
    fn a_token_in_clear_text_and_files_open_to_others_are_refused_without_quoting_them() {
        let token = "0123456789abcdef0123456789abcdef";
        let error = digests(file(token).path())
            .expect_err("no digest")
            .to_string();
        assert!(error.contains("line 1: expected the SHA-256"), "{error}");
        assert!(!error.contains(token), "{error}");
        assert!(digests(file("# none\n").path()).is_err());
        let open = file(&to_hex(&[1; 32]));
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = digests(open.path()).expect_err("exposed").to_string();
        assert!(error.contains("chmod o="), "{error}");
    }
}
