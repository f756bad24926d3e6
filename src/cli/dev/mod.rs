//! `sidekey dev`: a sidecar or a fleet to try out.

mod fleet;
#[cfg_attr(not(feature = "hub"), path = "no_hub.rs")]
mod hub;
mod load;

use std::{
    fs::{self, DirBuilder},
    io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;

use self::fleet::DevFleet;
use super::{
    output::{CliError, path_for_display, write_out},
    runtime::block_on,
    sidecar::serve,
};
use crate::{
    admin::{Admin, Bases, Signing},
    app::{self, ConfigFile},
    backend::{self, local::LocalKek},
    clock::Clock,
    crypto::{random, to_hex},
    files::create_private,
    keyring::Policy,
    model::{Location, Wave},
};

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// Directory for KEK, keyring, secret, config and socket; created if missing.
    #[arg(long, default_value = ".sidekey")]
    dir: PathBuf,
    /// Address of the ops listener, instead of the one in the config.
    #[arg(long, value_name = "ADDR", conflicts_with = "fleet")]
    ops: Option<SocketAddr>,
    /// Run this many sidecars in three waves instead of one, with applications that use them.
    #[arg(long, value_name = "N")]
    fleet: Option<usize>,
    /// Damage what applications of this wave encrypt under a new version, so that a rollout fails.
    #[arg(long, value_name = "WAVE", requires = "fleet", value_parser = Wave::from_str)]
    inject_fault: Option<Wave>,
}

impl Dev {
    pub(super) fn run(self) -> Result<(), CliError> {
        let folder = std::path::absolute(&self.dir).map_err(|error| {
            CliError::failed(format!("--dir {}: {error}", path_for_display(&self.dir)))
        })?;
        let config = block_on(prepare(&folder))?;
        if let Some(size) = self.fleet {
            let fault = self.inject_fault;
            return DevFleet { size, fault }.run(&folder);
        }
        let file = ConfigFile::new(config).with_ops(self.ops);
        let config = file.load()?;
        serve(&config, file, async |bound| {
            if tokio::time::timeout(Duration::from_secs(5), bound.ready())
                .await
                .is_err()
            {
                // The log says why; the sidecar starts to serve once it is ready.
                return Ok(());
            }
            let has_secret = config.settings.secrets.find("demo").is_some();
            let text = instructions(&folder, bound, has_secret);
            // Keeps serving meanwhile, read or unread.
            tokio::task::spawn_blocking(move || write_out(&text));
            Ok(())
        })
    }
}

/// Creates what is missing: directory, KEK, keyring, secret and config.
async fn prepare(folder: &Path) -> Result<PathBuf, CliError> {
    let failed =
        |path: &Path, error: io::Error| CliError::failed(format!("{}: {error}", path.display()));
    let keyrings = folder.join("keyrings");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&keyrings)
        .map_err(|error| failed(&keyrings, error))?;
    let (kek, manifest, config) = (
        folder.join("kek"),
        keyrings.join("demo.json"),
        folder.join("sidekey.toml"),
    );
    if !kek.exists() {
        LocalKek::create(&kek).map_err(CliError::failed)?;
    }
    if !manifest.exists() {
        let admin = Admin::new(
            Location::File(manifest),
            Signing::NoKey,
            &backend::configured(&Default::default()),
            Clock::system(),
        )?
        .with_bases(Bases {
            memory: super::target::memory(None),
            ..Bases::default()
        });
        let uri = format!("local:{}", kek.display())
            .parse()
            .map_err(|error| CliError::failed(format!("{}: {error}", kek.display())))?;
        let name = "demo"
            .parse()
            .map_err(|error| CliError::failed(format!("demo: {error}")))?;
        admin.init(name, &[uri], Policy::default()).await?;
    }
    let secret = folder.join("secret.json");
    if !secret.exists() {
        let password = random::<12>().map_err(CliError::failed)?;
        let password = to_hex(&password);
        let text = format!("{{\"user\":\"demo\",\"password\":\"{password}\"}}");
        create_private(&secret, text.as_bytes()).map_err(|error| failed(&secret, error))?;
    }
    if !config.exists() {
        let uid = rustix::process::geteuid().as_raw();
        fs::write(&config, dev_config(uid)).map_err(|error| failed(&config, error))?;
    }
    Ok(config)
}

fn dev_config(uid: u32) -> String {
    format!(
        r#"# Created by `sidekey dev`. docs/config.md describes every key.

[listen]
socket = "sidekey.sock"
mode = "0600"

[ops]
listen = "127.0.0.1:9464"

[log]
level = "info"

[backends]
local_keks = true

[[keyring]]
name = "demo"
location = "file:keyrings/demo.json"
keks = ["local:kek"]

[[secret]]
name = "demo"
source = "file:secret.json"

# Who may use what. Without any rule, only the socket's mode restricts access.
[[policy]]
keyrings = "*"
operations = ["encrypt", "decrypt", "rewrap", "inspect", "data-key"]
secrets = "*"
uids = [{uid}]
"#
    )
}

fn instructions(folder: &Path, bound: &app::Bound, has_secret: bool) -> String {
    let program = std::env::current_exe()
        .map_or_else(|_| "sidekey".into(), |path| path.display().to_string());
    let (socket, manifest) = (bound.socket().display(), folder.join("keyrings/demo.json"));
    let (manifest, ops) = (manifest.display(), bound.ops());
    let secret = folder.join("secret.json");
    let secret = secret.display();
    let secret = if has_secret {
        format!(
            r#"# read a password, rotate it, and read the previous one
curl -s --unix-socket "$SIDEKEY_SOCKET" 'http://sidekey/v1/secrets/demo?field=password'; echo
echo '{{"user":"demo","password":"another"}}' > '{secret}.new' && mv '{secret}.new' '{secret}'
sleep 1
curl -s --unix-socket "$SIDEKEY_SOCKET" \
  'http://sidekey/v1/secrets/demo?field=password&stage=previous'; echo

"#
        )
    } else {
        String::new()
    };
    format!(
        r#"
Sidekey is serving the keyring demo. Paste into another terminal:

export SIDEKEY_SOCKET='{socket}'
alias sidekey='{program}'

# encrypt and decrypt a file
sidekey encrypt --keyring demo --aad README < README.md > README.md.sk
sidekey decrypt --keyring demo --aad README < README.md.sk | cmp - README.md && echo same

# encrypt two database rows in one request
curl -s --unix-socket "$SIDEKEY_SOCKET" http://sidekey/v1/keyrings/demo/encrypt \
  -H 'Content-Type: application/json' -d '{{"batch": [
    {{"plaintext": "QWRh", "aad": "cm93IDE="}},
    {{"plaintext": "R3JhY2U=", "aad": "cm93IDI="}}]}}'

# rotate: within a second new ciphertexts use version 2, and old ones still decrypt
sidekey keyring rotate '{manifest}' --activate now
sleep 1
sidekey status

{secret}# what operators see: status and metrics
curl -s http://{ops}/status
curl -s http://{ops}/metrics

Press Ctrl-C to stop.
"#
    )
}
