//! Settings: one TOML file, validated as a whole.
//!
//! Each file here holds the settings of one table and the function that reads it.

mod audit;
mod backends;
mod changes;
mod fleet;
#[cfg(feature = "hub")]
mod hub;
mod join;
mod keyring;
mod limits;
mod listen;
mod log;
mod parse;
mod policy;
mod reader;
mod refresh;
mod render;
mod secret_mapping;
mod secrets;
mod signer;
mod tls;

pub use audit::{Audit, AuditForward, AuditSink};
pub use backends::{Aws, Azure, AzureLogin, Backends, Local, Pkcs11, Vault, VaultLogin, Web};
pub use changes::{Changes, changes};
pub use fleet::{
    FleetDiscovery, FleetFile, FleetHub, FleetKeyring, FleetSidecar, FleetTls, load_fleet,
    parse_fleet,
};
#[cfg(feature = "hub")]
pub use hub::{
    Credential, HubDatabase, HubLimits, HubRole, HubSettings, Operator, SidecarIdentity, Workload,
    load_hub, parse_hub,
};
pub use join::{Hub, HubLogin};
pub use keyring::{Confirm, Keyring};
pub use limits::{Limits, Timeouts};
pub use listen::{Listen, Ops, Tcp};
pub use log::{Log, LogFormat};
pub use parse::{LoadError, Problems, Settings, load, parse, read, read_again};
pub use policy::Rule;
pub use reader::Problem;
pub use refresh::{Refresh, Runtime};
pub(crate) use render::load_template;
pub use render::{Content, Notice, Render, Signal};
pub use secret_mapping::SecretMapping;
pub use secrets::{CachePolicy, Secret, Secrets};
pub use signer::{
    SignerApprovals, SignerBackup, SignerFile, SignerKeyring, load_signer, parse_signer,
};
pub use tls::{Tls, TlsClients, TlsVersion};
