use std::{
    fs::{self, DirBuilder},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

use super::{on_one_thread, output::Failure, shown, sidecar::serve};
use crate::{
    admin::{Admin, Signing},
    app,
    backend::{self, local::LocalKek},
    clock::Clock,
    config,
    crypto::{random, to_hex},
    files::create_private,
    keyring::Policy,
    model::Location,
};

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// Where KEK, keyring, secret, config and socket are; made if it isn't there.
    #[arg(long, default_value = ".sidekey")]
    dir: PathBuf,
    /// The ops listener's address, if not the config's.
    #[arg(long, value_name = "ADDR")]
    ops: Option<SocketAddr>,
}

impl Dev {
    pub(super) fn run(self) -> Result<(), Failure> {
        let folder = std::path::absolute(&self.dir)
            .map_err(|error| Failure::failed(format!("--dir {}: {error}", shown(&self.dir))))?;
        let config = on_one_thread(prepare(&folder))?;
        let mut settings = config::load(&config)?;
        if let Some(ops) = self.ops {
            settings.ops.listen = ops;
        }
        serve(&settings, async |bound| {
            if tokio::time::timeout(Duration::from_secs(5), bound.ready())
                .await
                .is_err()
            {
                // The log says why; it serves as soon as it can.
                return Ok(());
            }
            let has_secret = settings.secrets.find("demo").is_some();
            Ok(io::stdout()
                .lock()
                .write_all(instructions(&folder, bound, has_secret).as_bytes())?)
        })
    }
}

/// Makes what isn't there yet: folder, KEK, keyring, secret and config.
async fn prepare(folder: &Path) -> Result<PathBuf, Failure> {
    let failed =
        |path: &Path, error: io::Error| Failure::failed(format!("{}: {error}", path.display()));
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
        LocalKek::create(&kek).map_err(|error| Failure::failed(error.to_string()))?;
    }
    if !manifest.exists() {
        let admin = Admin::new(
            Location::File(manifest),
            Signing::Unless,
            &backend::configured(&Default::default()),
            Clock::system(),
        )?;
        let uri = format!("local:{}", kek.display())
            .parse()
            .map_err(|error| Failure::failed(format!("{}: {error}", kek.display())))?;
        let name = "demo"
            .parse()
            .map_err(|error| Failure::failed(format!("demo: {error}")))?;
        admin.init(name, &[uri], Policy::default()).await?;
    }
    let secret = folder.join("secret.json");
    if !secret.exists() {
        let password = random::<12>().map_err(|error| Failure::failed(error.to_string()))?;
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
        r#"# Made by `sidekey dev`. docs/config.md explains every key.

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

# Whoever may use what. With no rule at all, the socket's mode decides alone.
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
            r#"# a password, and the one before it after a rotation
curl -s --unix-socket "$SIDEKEY_SOCKET" 'http://sidekey/v1/secrets/demo?field=password'; echo
echo '{{"user":"demo","password":"another"}}' > '{secret}.new' && mv '{secret}.new' '{secret}'
sleep 1
curl -s --unix-socket "$SIDEKEY_SOCKET" 'http://sidekey/v1/secrets/demo?field=password&stage=previous'; echo

"#
        )
    } else {
        String::new()
    };
    format!(
        r#"
Sidekey serves keyring demo. Paste into another terminal:

export SIDEKEY_SOCKET='{socket}'
alias sidekey='{program}'

# a file, there and back
sidekey encrypt --keyring demo --aad README < README.md > README.md.sk
sidekey decrypt --keyring demo --aad README < README.md.sk | cmp - README.md && echo same

# two database rows in one request
curl -s --unix-socket "$SIDEKEY_SOCKET" http://sidekey/v1/keyrings/demo/encrypt -H 'Content-Type: application/json' \
  -d '{{"batch": [{{"plaintext": "QWRh", "aad": "cm93IDE="}}, {{"plaintext": "R3JhY2U=", "aad": "cm93IDI="}}]}}'

# rotate: what was encrypted before still decrypts, and within a second new ciphertext names the new version
sidekey keyring rotate '{manifest}' --activate now
sleep 1
sidekey status

{secret}# what operators see
curl -s http://{ops}/status
curl -s http://{ops}/metrics

Ctrl-C stops it.
"#
    )
}
