//! Bindings of secrets to environment variables and files.

use std::{collections::BTreeSet, str::FromStr};

use crate::model::{Conversion, SecretName};

/// The variable that names the directory of the files.
pub(super) const FILES: &str = "SIDEKEY_FILES";

/// An invalid binding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BindingError(String);

/// A secret, or what is taken of a secret that is a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SecretRef {
    pub(super) name: SecretName,
    pub(super) part: Part,
    pub(super) conversion: Conversion,
}

/// What is taken of a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Whole,
    Field(String),
    EveryField,
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

/// An environment variable for each field of a secret that is a JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldsBinding {
    prefix: String,
    pub(super) secret: SecretRef,
}

impl FieldsBinding {
    /// The variable for a field: the prefix, then the field's name in the form of variables, as
    /// shells can use them.
    pub(super) fn variable(&self, field: &str) -> String {
        let form = |character: char| match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' => character.to_ascii_uppercase(),
            _ => '_',
        };
        self.prefix.chars().chain(field.chars().map(form)).collect()
    }
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

impl FromStr for FieldsBinding {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let form = || BindingError("expected secret:SECRET or PREFIX=secret:SECRET".into());
        let (prefix, secret) = match text.strip_prefix("secret:") {
            Some(secret) => ("", secret),
            None => text.split_once("=secret:").ok_or_else(form)?,
        };
        let secret: SecretRef = secret.parse()?;
        if secret.part != Part::Whole || secret.conversion != Conversion::default() {
            let what = "takes every field as it is; use --env for one";
            return Err(BindingError(what.into()));
        }
        Ok(Self {
            prefix: prefix.into(),
            secret: SecretRef {
                part: Part::EveryField,
                ..secret
            },
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
        let (secret, part) = match text.split_once('#') {
            Some((_, "")) => return Err(BindingError("missing field name after #".into())),
            Some((secret, field)) => (secret, Part::Field(field.to_owned())),
            None => (text, Part::Whole),
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
            part,
            conversion,
        })
    }
}

/// All secrets of the program.
#[derive(Debug, Clone)]
pub struct Bindings {
    pub(super) env: Vec<EnvBinding>,
    pub(super) fields: Vec<FieldsBinding>,
    pub(super) files: Vec<FileBinding>,
}

impl Bindings {
    /// Combines bindings.
    ///
    /// # Errors
    /// There are none, a name is used twice, or a variable refers to an unknown file.
    pub fn new(
        env: Vec<EnvBinding>,
        fields: Vec<FieldsBinding>,
        files: Vec<FileBinding>,
    ) -> Result<Self, BindingError> {
        if env.is_empty() && fields.is_empty() && files.is_empty() {
            let what = "no secret given; use --env, --env-from or --file";
            return Err(BindingError(what.into()));
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
        Ok(Self { env, fields, files })
    }

    /// The secrets to fetch.
    pub(super) fn secrets(&self) -> BTreeSet<SecretRef> {
        let env = self.env.iter().filter_map(|binding| match &binding.source {
            EnvSource::Secret(secret) => Some(secret),
            EnvSource::File(_) => None,
        });
        env.chain(self.fields.iter().map(|binding| &binding.secret))
            .chain(self.files.iter().map(|binding| &binding.secret))
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
            part: field.map_or(Part::Whole, |field| Part::Field(field.to_owned())),
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
        assert_eq!(converted.part, Part::Field("a?b".into()));
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
    fn every_field_has_a_variable() {
        let fields = |text: &str| text.parse::<FieldsBinding>();
        let binding = fields("Db_=secret:db").expect("valid");
        assert_eq!(binding.variable("user"), "Db_USER");
        assert_eq!(binding.variable("tls.key-1"), "Db_TLS_KEY_1");
        assert_eq!(binding.variable("é=\0"), "Db____");
        assert_eq!(fields("secret:db").expect("valid").variable(""), "");
        for wrong in [
            "db",
            "secret:",
            "secret:db#user",
            "DB_=file:db",
            "=secret:a b",
        ] {
            assert!(fields(wrong).is_err(), "{wrong}");
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
                Vec::new(),
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
