//! `pkcs11:…` (RFC 7512): KEKs in a hardware security module, through its vendor's PKCS#11
//! library.
//!
//! An AES key wraps with AES-GCM; the wrap's context is the AAD. An RSA key wraps with OAEP; the
//! plaintext then contains a hash of the context.

mod error;
mod token;
mod uri;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
};
use futures_util::future::BoxFuture;

use self::{error::TokenError, token::Token, uri::KeyUri};
use super::{BackendError, ErrorKind, Kek};
use crate::{
    config,
    crypto::{Dek, WrapContext},
    files::BlockingPool,
    model::KekUri,
};

/// Concurrent operations per KEK, each in its own session.
const MAX_SESSIONS: usize = 4;

/// The vendor's library, loaded once per process.
pub(super) struct Library {
    path: Option<PathBuf>,
    loaded: Mutex<Option<Pkcs11>>,
}

impl Library {
    /// The path comes from the settings, or else from `PKCS11_MODULE_PATH`. Loaded at first use.
    pub(super) fn new(settings: &config::Pkcs11) -> Arc<Self> {
        let path = settings
            .module
            .clone()
            .or_else(|| std::env::var_os("PKCS11_MODULE_PATH").map(PathBuf::from));
        Arc::new(Self {
            path,
            loaded: Mutex::default(),
        })
    }

    pub(super) fn kek(self: &Arc<Self>, kek: &KekUri) -> Result<Arc<dyn Kek>, BackendError> {
        let misconfigured =
            |reason: String| BackendError::new(ErrorKind::Misconfigured, kek, reason);
        let uri = KeyUri::parse(kek.rest()).map_err(misconfigured)?;
        let path = self.path.as_deref().ok_or_else(|| {
            misconfigured(
                "set the path of the PKCS#11 library: `pkcs11.module` in the config, or the \
                 variable PKCS11_MODULE_PATH"
                    .into(),
            )
        })?;
        // A manifest must not choose which code this process loads.
        if uri.module.as_deref().is_some_and(|module| module != path) {
            return Err(misconfigured(format!(
                "module-path differs from the configured library, {}",
                path.display()
            )));
        }
        let token = Token::new(kek.clone(), uri, Arc::clone(self));
        Ok(Arc::new(TokenKek {
            token: Arc::new(token),
            pool: BlockingPool::new(MAX_SESSIONS),
        }))
    }

    /// Returns the library; loads it at the first call.
    fn get(&self) -> Result<Pkcs11, TokenError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = &*loaded {
            return Ok(library.clone());
        }
        let path = self.path.as_deref().unwrap_or(Path::new(""));
        let library = Pkcs11::new(path).map_err(|error| {
            let message = format!("can't load {}: {error}", path.display());
            TokenError::new(ErrorKind::Misconfigured, message)
        })?;
        match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // A library is initialized once per process, perhaps by an earlier `Library`.
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error.into()),
        }
        *loaded = Some(library.clone());
        Ok(library)
    }
}

/// A KEK in a token.
struct TokenKek {
    token: Arc<Token>,
    pool: BlockingPool,
}

impl Kek for TokenKek {
    fn wrap<'a>(
        &'a self,
        dek: &'a Dek,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Vec<u8>, BackendError>> {
        Box::pin(async move {
            let token = Arc::clone(&self.token);
            let Some(dek) = Dek::from_slice(dek.expose()) else {
                unreachable!("a data key has the length of a data key")
            };
            self.pool.run(move || token.wrap(&dek, context)).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Dek, BackendError>> {
        Box::pin(async move {
            let (token, wrap) = (Arc::clone(&self.token), wrap.to_vec());
            self.pool.run(move || token.unwrap(&wrap, context)).await
        })
    }
}
