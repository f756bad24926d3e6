//! Which secret goes where.

use std::{collections::BTreeSet, str::FromStr};

use crate::model::SecretName;

/// Names the folder of the files to the program.
pub(super) const FILES: &str = "SIDEKEY_FILES";

/// Why a binding was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BindingError(String);

/// A secret, or a field of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Piece {
    pub(super) secret: SecretName,
    pub(super) field: Option<String>,
}

/// A variable of the program's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvBinding {
    pub(super) name: String,
    pub(super) source: EnvSource,
}

/// What a variable holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EnvSource {
    Secret(Piece),
    /// The path of the file with this name.
    File(String),
}

/// A file in the program's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBinding {
    pub(super) name: String,
    pub(super) piece: Piece,
}

impl FromStr for EnvBinding {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let form = || {
            BindingError(
                "write NAME=secret:SECRET, NAME=secret:SECRET#FIELD or NAME=file:FILE".into(),
            )
        };
        let (name, source) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(form)?;
        if name == FILES {
            return Err(BindingError(format!(
                "{FILES} names the folder of the files"
            )));
        }
        let source = match source.split_once(':').ok_or_else(form)? {
            ("secret", piece) => EnvSource::Secret(piece.parse()?),
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
        let form = || BindingError("write NAME=secret:SECRET or NAME=secret:SECRET#FIELD".into());
        let (name, piece) = text.split_once("=secret:").ok_or_else(form)?;
        // The folder's own names begin with a dot.
        if name.is_empty()
            || name.len() > 255
            || name.starts_with('.')
            || name.contains(['/', '\0'])
        {
            return Err(BindingError(
                "a file's name has no slash, doesn't begin with a dot, and has at most 255 bytes"
                    .into(),
            ));
        }
        Ok(Self {
            name: name.into(),
            piece: piece.parse()?,
        })
    }
}

impl FromStr for Piece {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let (secret, field) = match text.split_once('#') {
            Some((_, "")) => return Err(BindingError("after the # stands a field's name".into())),
            Some((secret, field)) => (secret, Some(field.to_owned())),
            None => (text, None),
        };
        let secret = secret
            .parse()
            .map_err(|error| BindingError(format!("the secret's name: {error}")))?;
        Ok(Self { secret, field })
    }
}

/// Everything that the program gets.
#[derive(Debug, Clone)]
pub struct Bindings {
    pub(super) env: Vec<EnvBinding>,
    pub(super) files: Vec<FileBinding>,
}

impl Bindings {
    /// Bindings that don't contradict each other.
    ///
    /// # Errors
    /// There is none, a name is taken twice, or a variable names a file that there is not.
    pub fn new(env: Vec<EnvBinding>, files: Vec<FileBinding>) -> Result<Self, BindingError> {
        if env.is_empty() && files.is_empty() {
            return Err(BindingError(
                "the program gets no secret; say which one by --env or --file".into(),
            ));
        }
        let names = |flag, names: Vec<&String>| {
            let mut seen = BTreeSet::new();
            match names.into_iter().find(|name| !seen.insert(*name)) {
                Some(name) => Err(BindingError(format!("{flag} {name} is there twice"))),
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
                    "--env {}: there is no --file {file}",
                    binding.name
                )));
            }
        }
        Ok(Self { env, files })
    }

    /// What has to be fetched.
    pub(super) fn pieces(&self) -> BTreeSet<Piece> {
        let env = self.env.iter().filter_map(|binding| match &binding.source {
            EnvSource::Secret(piece) => Some(piece),
            EnvSource::File(_) => None,
        });
        env.chain(self.files.iter().map(|binding| &binding.piece))
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
    fn a_binding_names_a_secret_a_field_or_a_file() {
        let piece = |field: Option<&str>| Piece {
            secret: "db".parse().expect("name"),
            field: field.map(str::to_owned),
        };
        assert_eq!(
            env("PW=secret:db").expect("valid").source,
            EnvSource::Secret(piece(None))
        );
        assert_eq!(
            env("PW=secret:db#a=b#c").expect("valid").source,
            EnvSource::Secret(piece(Some("a=b#c")))
        );
        assert_eq!(
            env("PW=file:pw").expect("valid").source,
            EnvSource::File("pw".into())
        );
        assert_eq!(
            file("tls.key=secret:db#key").expect("valid"),
            FileBinding {
                name: "tls.key".into(),
                piece: piece(Some("key"))
            }
        );
        for wrong in [
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
    fn bindings_that_contradict_each_other_are_refused() {
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
            Some("--env A is there twice")
        );
        assert_eq!(
            refused(&[], &["a=secret:a", "a=secret:b"]).as_deref(),
            Some("--file a is there twice")
        );
        assert_eq!(
            refused(&["A=file:a"], &[]).as_deref(),
            Some("--env A: there is no --file a")
        );
        assert!(refused(&[], &[]).is_some());
    }
}
