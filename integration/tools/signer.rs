//! `sidekey signer`: people without any right to a KEK order rollouts through a hub, which may lie.

use std::{
    fs,
    process::{Child, Command, Output, Stdio},
    time::Instant,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sidekey::{crypto::SigningKey, model::SignerKey};

use crate::support::{
    harness::{PATIENCE, Sidecar, World, binary, wait},
    lying_hub::LyingHub,
};

const FAST: &str = r#"
name = "fast"
poll = "100ms"
[each_wave]
within = "1m"
soak = { for = "1s", analysis = { minimum_samples = 0 } }
"#;

/// A keyring in two waves, a hub, and Ann, whose orders the signer takes.
struct Shop {
    world: World,
    hub: LyingHub,
    sidecars: [Sidecar; 2],
}

/// A signer, killed when dropped.
struct Signer(Child);

impl Shop {
    fn new() -> Self {
        let world = World::with_demo();
        let hub = LyingHub::start();
        let canary = world.start_with("canary", "wave = \"canary\"", &["demo"]);
        let standard = world.start_with("standard", "", &["demo"]);
        let shop = Self {
            world,
            hub,
            sidecars: [canary, standard],
        };
        let status = shop.world.keyring("status", "demo", &[]);
        let digest = status
            .lines()
            .find_map(|line| line.strip_prefix("digest "))
            .unwrap();
        let members: String = [("orders-0", 0), ("orders-1", 1)]
            .map(|(name, index)| {
                let url = shop.sidecars[index].ops;
                format!("[[sidecar]]\nurl = \"http://{url}\"\nname = \"{name}\"\n")
            })
            .concat();
        let hub = format!("[hub]\nurl = \"{}\"\n{members}", shop.hub.url);
        let ann = shop.key("ann.pem", 1);
        let signer = format!(
            "state_dir = \"signer-state\"\nbackends.local_keks = true\n{hub}\
             [[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = [\"local:*\"]\n\
             first_time = \"{digest}\"\nrequesters = [\"{ann}\"]\n"
        );
        fs::write(shop.world.path("signer.toml"), signer).unwrap();
        // The people's own file: no location.
        fs::write(shop.world.path("fleet.toml"), hub).unwrap();
        fs::write(shop.world.path("fast.toml"), FAST).unwrap();
        shop
    }

    /// Writes an Ed25519 key (PKCS#8 PEM, RFC 8410), and returns its public half.
    fn key(&self, name: &str, seed: u8) -> String {
        let mut der = vec![
            0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
        ];
        der.extend([seed; 32]);
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            STANDARD.encode(der)
        );
        let public = SigningKey::from_pem(pem.as_bytes()).unwrap().public_key();
        fs::write(self.world.path(name), pem).unwrap();
        SignerKey(public).to_string()
    }

    fn path(&self, name: &str) -> String {
        self.world.path(name).display().to_string()
    }

    fn signer(&self) -> Signer {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.world.path("signer.log"))
            .unwrap();
        let child = Command::new(binary())
            .args(["signer", "--config", &self.path("signer.toml")])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Signer(child)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.world.path("signer.log")).unwrap()
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        Command::new(binary())
            .args(arguments)
            .env("SIDEKEY_FLEET", self.path("fleet.toml"))
            .env("SIDEKEY_STATE_DIR", self.path("ann-state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn rollout(&self, verb: &str, extra: &[&str]) -> Output {
        self.ended(self.spawn(&[&["rollout", verb, "demo"], extra].concat()))
    }

    fn ended(&self, mut child: Child) -> Output {
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > PATIENCE {
                child.kill().unwrap();
                let output = child.wait_with_output();
                panic!("it doesn't end: {output:?}; signer: {}", self.log());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait_with_output().unwrap()
    }

    fn order(&self, strategy: &str, key: &str) -> Output {
        let (strategy, key) = (self.path(strategy), self.path(key));
        self.rollout("run", &["--strategy", &strategy, "--requester-key", &key])
    }

    fn versions(&self) -> usize {
        self.world.read_manifest("demo")["versions"]
            .as_array()
            .unwrap()
            .len()
    }

    fn encrypting(&self) -> [u64; 2] {
        self.sidecars
            .each_ref()
            .map(|sidecar| sidecar.keyring()["active"]["encrypting"].as_u64().unwrap())
    }

    fn wait_for(&self, what: &str, is_there: impl Fn(&Value) -> bool) {
        wait(what, || {
            self.hub.journal().is_some_and(|journal| is_there(&journal))
        });
    }
}

impl Signer {
    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success());
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        wait("the signer's end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn an_order_is_run_and_followed_and_one_by_a_stranger_refused_and_shown() {
    let shop = Shop::new();
    let file = shop.path("signer.toml");
    let check = shop
        .world
        .succeed(&["signer", "--config", &file, "--check"]);
    assert!(check.contains("keyrings: 1"), "{check}");
    let _signer = shop.signer();
    let eve = shop.key("eve.pem", 2);
    let refused = shop.order("fast.toml", "eve.pem");
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused));
    assert!(text(&refused).contains(&eve), "{}", text(&refused));
    assert!(shop.log().contains("refused an order"), "{}", shop.log());
    assert_eq!(shop.versions(), 1);

    let run = shop.order("fast.toml", "ann.pem");
    assert!(run.status.success(), "{}\n{}", text(&run), shop.log());
    assert!(text(&run).contains("2 sidecars proved"), "{}", text(&run));
    assert_eq!(shop.encrypting(), [2, 2]);
    let listed = shop.rollout("list", &[]);
    assert!(text(&listed).contains("finished"), "{}", text(&listed));
    let report = shop.rollout("report", &[]);
    assert!(
        text(&report).contains("The rollout is finished."),
        "{}",
        text(&report)
    );
    let journal = shop.hub.journal().unwrap();
    assert!(
        journal["state"]["plan"]["order"].is_string(),
        "the plan names the order"
    );

    // The hub's database is restored: the order waits again.
    shop.hub.with(|kept| {
        kept.journals.clear();
        for order in &mut kept.orders {
            order.outcome = json!("waiting");
        }
    });
    wait("decisions", || {
        let waits = |kept: &mut crate::support::lying_hub::Kept| {
            kept.orders.iter().any(|order| order.outcome == "waiting")
        };
        !shop.hub.with(waits)
    });
    assert_eq!(shop.versions(), 2);

    // And back, by a verb of Ann's.
    let back = shop.rollout("rollback", &["--requester-key", &shop.path("ann.pem")]);
    assert_eq!(
        back.status.code(),
        Some(1),
        "the journal is lost: {}",
        text(&back)
    );
    shop.hub.with(|kept| {
        let bytes = serde_json::to_vec(&journal).unwrap();
        kept.journals.insert("demo".into(), bytes);
    });
    let back = shop.rollout("rollback", &["--requester-key", &shop.path("ann.pem")]);
    assert!(back.status.success(), "{}\n{}", text(&back), shop.log());
    shop.wait_for("the rollback's end", |journal| {
        journal["state"]["phase"]["is"] == "rolled-back"
    });
    wait("the former primary", || shop.encrypting() == [1, 1]);
}

#[test]
fn a_killed_signer_goes_on_and_believes_no_lie_of_the_hub() {
    let shop = Shop::new();
    fs::write(shop.world.path("slow.toml"), FAST.replace("1s", "1h")).unwrap();
    let mut signer = shop.signer();
    let strategy = shop.path("slow.toml");
    let ann = shop.path("ann.pem");
    let arguments = ["rollout", "run", "demo", "--strategy", &strategy];
    let follower = shop.spawn(&[&arguments[..], &["--requester-key", &ann]].concat());
    let soaks = |journal: &Value| {
        journal["state"]["progress"]["at"] == "soaking" && journal["runner"].is_object()
    };
    shop.wait_for("the first soak", soaks);
    let step = shop.hub.journal().unwrap()["state"]["step"].clone();

    signer.signal("KILL");
    signer.wait();
    shop.hub.forge(|journal| {
        let state = &mut journal["state"];
        let steps = state["plan"]["steps"].as_array().unwrap().len();
        state["step"] = json!(steps - 2);
        state["skips_soaks"] = json!(true);
        state["plan"]["steps"][steps - 2] = json!({"do": "disable", "approval": false});
    });
    let mut signer = shop.signer();
    shop.wait_for("the soak that was true", |journal| {
        soaks(journal) && journal["state"]["step"] == step
    });

    // Forged requests, while the signer runs.
    shop.hub.forge(|journal| {
        let forged = json!({"asked": {
            "rollout": journal["state"]["id"], "step": step, "verb": "promote-full", "by": "ann",
        }});
        journal["requests"].as_array_mut().unwrap().push(forged);
        journal["state"]["skips_soaks"] = json!(true);
    });
    shop.wait_for("the refusal", |journal| {
        let entries = journal["state"]["entries"].to_string();
        entries.contains("no requester of the signer has signed it")
    });
    let journal = shop.hub.journal().unwrap();
    assert_eq!(journal["state"]["step"], step);
    assert_eq!(journal["state"]["skips_soaks"], false);
    shop.key("eve.pem", 2);
    let eve = shop.rollout("abort", &["--requester-key", &shop.path("eve.pem")]);
    assert_eq!(eve.status.code(), Some(3), "{}", text(&eve));

    // Between two actions, on request.
    signer.signal("TERM");
    assert!(signer.wait().success(), "{}", shop.log());
    assert!(shop.hub.journal().unwrap()["runner"].is_null());
    let _signer = shop.signer();
    shop.wait_for("the soak again", soaks);
    let promoted = shop.rollout("promote", &["--full", "--requester-key", &ann]);
    assert!(
        promoted.status.success(),
        "{}\n{}",
        text(&promoted),
        shop.log()
    );
    let run = shop.ended(follower);
    assert!(run.status.success(), "{}\n{}", text(&run), shop.log());
    assert_eq!((shop.versions(), shop.encrypting()), (2, [2, 2]));
}
