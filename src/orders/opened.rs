//! A keyring that a signer changes, with everything that its settings name.

use std::{fs, path::PathBuf, sync::Arc};

use zeroize::Zeroizing;

use super::{SignerError, taken::TakenOrders};
use crate::{
    admin::{Admin, AdminError, Bases, Memory, Signing},
    audit::{self, AuditFile, Sink},
    backend::Backends,
    clock::Clock,
    config::{self, SignerFile, SignerKeyring},
    crypto::{KeyringId, SigningKey},
    fleet::{Fleet, HubRollouts},
    model::KeyringName,
    rollout::{ApprovalRule, BackUp, StartRules},
    runner::{Journal, KeptState, Runner},
    signer::Signer,
};

/// How many sidecars' clocks are compared with this machine's before each change.
const CLOCKS: usize = 5;

/// A keyring, not read yet.
pub(super) struct Keyring {
    pub(super) name: KeyringName,
    pub(super) rules: StartRules,
    signer: Signer,
    journal: Journal,
    state_dir: PathBuf,
    pub(super) audit: Option<config::Audit>,
    pub(super) clock: Clock,
}

/// A keyring whose id is known.
pub(super) struct Ready {
    pub(super) id: KeyringId,
    pub(super) runner: Runner,
    pub(super) taken: TakenOrders,
    /// What was run here last.
    pub(super) kept: KeptState,
}

impl Keyring {
    /// Reads the files that the settings name.
    pub(super) fn open(
        settings: &SignerKeyring,
        file: &SignerFile,
        fleet: &Fleet,
        backends: &Arc<dyn Backends>,
        hub: &HubRollouts,
        clock: &Clock,
    ) -> Result<Self, SignerError> {
        let name = &settings.name;
        let failed = |error: AdminError| SignerError::Keyring {
            name: name.clone(),
            reason: error.to_string(),
        };
        let signing = signing(settings)?;
        let location = settings.location.clone();
        let admin = Admin::new(location, signing, backends, clock.clone()).map_err(failed)?;
        let admin = admin.with_scope(settings.keks.clone()).with_bases(Bases {
            memory: Some(Memory::in_folder(&file.state_dir)),
            clocks: fleet.sample(CLOCKS),
            first_time: settings.first_time.clone(),
            ..Bases::default()
        });
        let signer = Signer::new(admin, fleet.clone()).map_err(failed)?;
        Ok(Self {
            name: name.clone(),
            rules: rules(settings),
            signer,
            journal: Journal::at(hub.name(), hub.journal(name)),
            state_dir: file.state_dir.clone(),
            audit: file.audit.clone(),
            clock: clock.clone(),
        })
    }

    /// Reads the manifest, which tells the keyring's id.
    ///
    /// # Errors
    /// The manifest can't be read, isn't trusted, or is another keyring's.
    pub(super) async fn trust(&self) -> Result<KeyringId, String> {
        let document = self.signer.admin().read_trusted().await;
        let document = document.map_err(|error: AdminError| error.to_string())?;
        let manifest = document.manifest();
        if manifest.name == self.name {
            return Ok(manifest.id);
        }
        Err(format!(
            "the manifest is that of keyring {}; correct `name` or `location`",
            manifest.name
        ))
    }

    /// Prepares to run its rollouts.
    pub(super) fn ready(self, id: KeyringId) -> Ready {
        let kept = KeptState::in_folder(&self.state_dir, id);
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let journal = self.journal.keeping(kept.clone());
        let runner = Runner::new(self.signer, journal, &host, self.clock);
        Ready {
            id,
            kept,
            runner: runner.for_requesters(self.rules.requesters),
            taken: TakenOrders::in_folder(&self.state_dir, id),
        }
    }
}

/// Opens the audit log for one record and its outcome.
pub(super) fn audit_file(settings: Option<&config::Audit>) -> Result<Option<AuditFile>, String> {
    match settings.map(audit::open).transpose() {
        Ok(Some(Sink::File(file))) => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn signing(settings: &SignerKeyring) -> Result<Signing, SignerError> {
    let Some(file) = &settings.sign_key_file else {
        return Ok(Signing::NoKey);
    };
    let failed = |reason: String| SignerError::Keyring {
        name: settings.name.clone(),
        reason: format!("{}: {reason}", file.display()),
    };
    let pem = fs::read(file).map_err(|error| failed(error.to_string()))?;
    let key = SigningKey::from_pem(&Zeroizing::new(pem));
    Ok(Signing::With {
        key: key.map_err(|error| failed(error.to_string()))?,
        trusted: settings.trusted_signers.clone(),
        adopt: None,
    })
}

fn rules(settings: &SignerKeyring) -> StartRules {
    StartRules {
        requesters: settings.requesters.clone(),
        approvals: settings.approvals.as_ref().map(|rule| ApprovalRule {
            required: rule.required,
            approvers: rule.approvers.clone(),
        }),
        backup: settings.backup.as_ref().map(|backup| BackUp {
            folder: backup.folder.display().to_string(),
            recipients_file: backup.recipients_file.display().to_string(),
            identity_file: backup.identity_file.display().to_string(),
        }),
        keks: settings.keks.clone(),
        versions_per_day: settings.new_versions_per_day,
    }
}
