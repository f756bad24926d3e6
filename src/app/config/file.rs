//! A config file, and what is in it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::{
    config::{self, LoadError, Settings},
    crypto::{fingerprint, to_hex},
};

/// A config as it was read.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The SHA-256 (FIPS 180-4) of the file's bytes, in hexadecimal.
    pub sha256: String,
    /// What the file says.
    pub settings: Settings,
}

/// The file that a sidecar's config is in.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    ops: Option<SocketAddr>,
}

impl ConfigFile {
    /// The file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ops: None,
        }
    }

    /// Replaces the address of the ops listener in the file.
    #[must_use]
    pub fn with_ops(mut self, address: Option<SocketAddr>) -> Self {
        self.ops = address;
        self
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file, which may be a pipe. Blocks.
    ///
    /// # Errors
    /// Fails if the file can't be read or is invalid.
    pub fn load(&self) -> Result<Config, LoadError> {
        self.parse(&config::read(&self.path)?)
    }

    /// Reads the file again, which must be a regular one. Blocks.
    pub(super) fn load_again(&self) -> Result<Config, LoadError> {
        self.parse(&config::read_again(&self.path)?)
    }

    fn parse(&self, text: &str) -> Result<Config, LoadError> {
        let mut settings = config::parse(&self.path, text)?;
        if let Some(ops) = self.ops {
            settings.ops.listen = ops;
        }
        Ok(Config {
            file: self.path.clone(),
            sha256: to_hex(&fingerprint(text.as_bytes())),
            settings,
        })
    }
}
