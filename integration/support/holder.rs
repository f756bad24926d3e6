//! A person who can open backups.

use std::{
    fs,
    path::{Path, PathBuf},
};

use age::secrecy::ExposeSecret;

/// An age identity, in a file as age-keygen writes it.
pub struct Holder {
    file: PathBuf,
    recipient: String,
}

impl Holder {
    pub fn new(file: &Path) -> Self {
        let identity = age::x25519::Identity::generate();
        let recipient = identity.to_public().to_string();
        let secret = identity.to_string();
        let text = format!("# public key: {recipient}\n{}\n", secret.expose_secret());
        fs::write(file, text).unwrap();
        Self {
            file: file.to_owned(),
            recipient,
        }
    }

    pub fn file(&self) -> &str {
        self.file.to_str().unwrap()
    }

    pub fn recipient(&self) -> &str {
        &self.recipient
    }
}
