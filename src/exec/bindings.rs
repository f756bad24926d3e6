//! Bindings of secrets to environment variables and files.

use std::{collections::BTreeSet, str::FromStr};

use crate::model::{Conversion, SecretName};

/// The variable that names the directory of the files.
pub(super) const FILES: &str = "SIDEKEY_FILES";

/// An invalid binding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BindingError(String);

/// A secret, or a field of a secret that is a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SecretRef {
    pub(super) name: SecretName,
    pub(super) field: Option<String>,
    pub(super) conversion: Conversion,
}

/// An environment variable of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvBinding {
    pub(super) name: String,
    pub(super) source: EnvSource,
}

/// Where a variable's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EnvSource {
    Secret(SecretRef),
    /// The path of the file with this name.
    File(String),
}

/// A file in the program's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBinding {
    pub(super) name: String,
    pub(super) secret: SecretRef,
}

impl FromStr for EnvBinding {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let form = || {
            BindingError("expected NAME=secret:SECRET[?OPTIONS][#FIELD] or NAME=file:FILE".into())
        };
        let (name, source) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(form)?;
        if name == FILES {
            return Err(BindingError(format!(
                "{FILES} is reserved for the directory of the files"
            )));
        }
        let source = match source.split_once(':').ok_or_else(form)? {
            ("secret", secret) => EnvSource::Secret(secret.parse()?),
            ("file", file) => EnvSource::File(file.into()),
            _ => return Err(form()),
        };
        Ok(Self {
            name: name.into(),
            source,
        })
    }
}

impl FromStr for FileBinding {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let form = || BindingError("expected NAME=secret:SECRET[?OPTIONS][#FIELD]".into());
        let (name, secret) = text.split_once("=secret:").ok_or_else(form)?;
        // Names that start with a dot are reserved for the directory's own entries.
        if name.is_empty()
            || name.len() > 255
            || name.starts_with('.')
            || name.contains(['/', '\0'])
        {
            return Err(BindingError(
                "a file name must not contain a slash, start with a dot, or exceed 255 bytes"
                    .into(),
            ));
        }
        Ok(Self {
            name: name.into(),
            secret: secret.parse()?,
        })
    }
}

impl FromStr for SecretRef {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let (secret, field) = match text.split_once('#') {
            Some((_, "")) => return Err(BindingError("missing field name after #".into())),
            Some((secret, field)) => (secret, Some(field.to_owned())),
            None => (text, None),
        };
        let (secret, options) = secret.split_once('?').unwrap_or((secret, ""));
        let name = secret
            .parse()
            .map_err(|error| BindingError(format!("invalid secret name: {error}")))?;
        let mut conversion = Conversion::default();
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let is_known = conversion.set(key, value);
            if !is_known.map_err(|error| BindingError(error.to_string()))? {
                return Err(BindingError(format!(
                    "unknown option {key}; expected decode=base64 or trim=newline"
                )));
            }
        }
        Ok(Self {
            name,
            field,
            conversion,
        })
    }
}

/// All secrets of the program.
#[derive(Debug, Clone)]
pub struct Bindings {
    pub(super) env: Vec<EnvBinding>,
    pub(super) files: Vec<FileBinding>,
}

impl Bindings {
    /// Combines bindings.
    ///
    /// # Errors
    /// There are none, a name is used twice, or a variable refers to an unknown file.
    pub fn new(env: Vec<EnvBinding>, files: Vec<FileBinding>) -> Result<Self, BindingError> {
        if env.is_empty() && files.is_empty() {
            return Err(BindingError("no secret given; use --env or --file".into()));
        }
        let names = |flag, names: Vec<&String>| {
            let mut seen = BTreeSet::new();
            match names.into_iter().find(|name| !seen.insert(*name)) {
                Some(name) => Err(BindingError(format!("duplicate {flag} {name}"))),
                None => Ok(()),
            }
        };
        names("--env", env.iter().map(|binding| &binding.name).collect())?;
        names(
            "--file",
            files.iter().map(|binding| &binding.name).collect(),
        )?;
        for binding in &env {
            if let EnvSource::File(file) = &binding.source
                && files.iter().all(|binding| binding.name != *file)
            {
                return Err(BindingError(format!(
                    "--env {}: unknown --file {file}",
                    binding.name
                )));
            }
        }
        Ok(Self { env, files })
    }

    /// The secrets to fetch.
    pub(super) fn secrets(&self) -> BTreeSet<SecretRef> {
        let env = self.env.iter().filter_map(|binding| match &binding.source {
            EnvSource::Secret(secret) => Some(secret),
            EnvSource::File(_) => None,
        });
        env.chain(self.files.iter().map(|binding| &binding.secret))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(text: &str) -> Result<EnvBinding, BindingError> {
        text.parse()
    }

    fn file(text: &str) -> Result<FileBinding, BindingError> {
        text.parse()
    }

    #[test]
    fn parses_secrets_fields_and_files() {
        let secret = |field: Option<&str>| SecretRef {
            name: "db".parse().expect("name"),
            field: field.map(str::to_owned),
            conversion: Conversion::default(),
        };
        assert_eq!(
            env("PW=secret:db").expect("valid").source,
            EnvSource::Secret(secret(None))
        );
        assert_eq!(
            env("PW=secret:db#a=b#c").expect("valid").source,
            EnvSource::Secret(secret(Some("a=b#c")))
        );
        assert_eq!(
            env("PW=file:pw").expect("valid").source,
            EnvSource::File("pw".into())
        );
        assert_eq!(
            file("tls.key=secret:db#key").expect("valid"),
            FileBinding {
                name: "tls.key".into(),
                secret: secret(Some("key"))
            }
        );
        let EnvSource::Secret(converted) = env("PW=secret:db?trim=newline&decode=base64#a?b")
            .expect("valid")
            .source
        else {
            panic!("a secret")
        };
        assert_eq!(converted.field.as_deref(), Some("a?b"));
        assert!(converted.conversion.decode_base64 && converted.conversion.trim_newline);
        for wrong in [
            "PW=secret:db?trim",
            "PW=secret:db?field=a",
            "PW=secret:db?decode=base64&decode=base64",
            "PW",
            "=secret:db",
            "PW=db",
            "PW=secret:",
            "PW=secret:db#",
            "PW=secret:a b",
            "PW=vault:x",
            "SIDEKEY_FILES=secret:db",
        ] {
            assert!(env(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "pw",
            "=secret:db",
            ".pw=secret:db",
            "../pw=secret:db",
            "a/b=secret:db",
            "pw=file:x",
        ] {
            assert!(file(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn duplicate_names_and_unknown_files_are_refused() {
        let refused = |env: &[&str], files: &[&str]| {
            let env = env
                .iter()
                .map(|text| text.parse().expect("valid"))
                .collect();
            Bindings::new(
                env,
                files
                    .iter()
                    .map(|text| text.parse().expect("valid"))
                    .collect(),
            )
            .err()
            .map(|error| error.to_string())
        };
        assert_eq!(refused(&["A=secret:a", "B=file:b"], &["b=secret:a"]), None);
        assert_eq!(
            refused(&["A=secret:a", "A=secret:b"], &[]).as_deref(),
            Some("duplicate --env A")
        );
        assert_eq!(
            refused(&[], &["a=secret:a", "a=secret:b"]).as_deref(),
            Some("duplicate --file a")
        );
        assert_eq!(
            refused(&["A=file:a"], &[]).as_deref(),
            Some("--env A: unknown --file a")
        );
        assert!(refused(&[], &[]).is_some());
    }
}
