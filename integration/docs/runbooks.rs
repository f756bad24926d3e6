//! Every command of the runbooks runs, in order, against real sidecars.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use sidekey::backend::local::LocalKek;

use crate::support::{
    harness::{Sidecar, World, binary, wait},
    holder::Holder,
    hub::{HubWorld, Reporter},
};

/// A strategy that soaks for a second, so that a test is short.
const FAST: &str = r#"
name = "fast"
poll = "100ms"
[each_wave]
within = "1m"
soak = { for = "1s", analysis = { minimum_samples = 0 } }
"#;

/// Two sidecars in two waves, a fleet file, and what a runbook's variables name.
struct Scene {
    world: World,
    sidecars: Vec<Sidecar>,
    variables: BTreeMap<&'static str, String>,
    holder: Holder,
}

/// A runbook's `sh` blocks, also those within lists, in order.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in page.lines() {
        match (line.trim(), &mut open) {
            ("```sh", None) => open = Some(String::new()),
            ("```", Some(_)) => blocks.extend(open.take()),
            (_, Some(block)) => {
                block.push_str(line.trim_start());
                block.push('\n');
            }
            _ => {}
        }
    }
    assert!(open.is_none(), "an open block");
    blocks
}

fn is_settings(block: &str) -> bool {
    block.lines().all(|line| line.starts_with("export "))
}

impl Scene {
    fn new() -> Self {
        let world = World::with_demo();
        let sidecars = vec![
            world.start_with("one", "wave = \"canary\"", &["demo"]),
            world.start_with("two", "", &["demo"]),
        ];
        let mut fleet = String::from("[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\n");
        for sidecar in &sidecars {
            fleet.push_str(&format!("[[sidecar]]\nurl = \"http://{}\"\n", sidecar.ops));
        }
        fs::write(world.path("fleet.toml"), fleet).unwrap();
        fs::create_dir(world.path("bin")).unwrap();
        symlink(binary(), world.path("bin/sidekey")).unwrap();
        let holder = Holder::new(&world.path("holder.key"));
        let text = |path: &Path| path.display().to_string();
        let variables = [
            ("SIDEKEY_FLEET", text(&world.path("fleet.toml"))),
            ("NAME", "demo".into()),
            ("M", text(&world.manifest("demo"))),
        ];
        Self {
            variables: variables.into(),
            holder,
            sidecars,
            world,
        }
    }

    fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.insert(name, value.into());
    }

    /// Another KEK, which the sidecars may use.
    fn kek(&self, name: &str) -> String {
        let file = self.world.path(name);
        LocalKek::create(&file).unwrap();
        format!("local:{}", file.display())
    }

    fn back_up(&mut self) {
        let file = self.world.path("demo.age").display().to_string();
        let (recipient, identity) = (self.holder.recipient(), self.holder.file());
        let arguments = [
            "--to",
            &file,
            "--recipient",
            recipient,
            "--identity",
            identity,
        ];
        self.world.keyring("backup", "demo", &arguments);
        self.set("BACKUP", file);
        self.set("HOLDER", self.holder.file().to_owned());
    }

    /// Runs blocks of a page, which must use exactly the variables of this scene.
    fn run(&self, blocks: &[String]) {
        let settings = blocks.iter().filter(|block| is_settings(block));
        let set: BTreeSet<&str> = settings
            .flat_map(|block| block.lines())
            .map(|line| line["export ".len()..].split('=').next().unwrap())
            .collect();
        let used = self.variables.keys().copied().collect();
        assert_eq!(set, used, "the variables of the page");
        for block in blocks.iter().filter(|block| !is_settings(block)) {
            let path = format!(
                "{}:{}",
                self.world.path("bin").display(),
                std::env::var("PATH").unwrap()
            );
            let output = Command::new("bash")
                .args(["-eu", "-o", "pipefail", "-c", block])
                .current_dir(self.world.path(""))
                .env("PATH", path)
                .envs(&self.variables)
                .envs(self.world.env.iter().cloned())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(output.status.success(), "{block}: {output:?}");
            self.follow();
        }
    }

    /// Waits until the sidecars have what the location has, if it has anything.
    fn follow(&self) {
        if !self.world.manifest("demo").exists() {
            return;
        }
        let generation = self.manifest()["generation"].as_u64().unwrap();
        for sidecar in &self.sidecars {
            sidecar.wait_generation(generation);
        }
    }

    fn manifest(&self) -> Value {
        self.world.read_manifest("demo")
    }

    /// The version that each sidecar encrypts with.
    fn encrypting(&self) -> Vec<u64> {
        let of = |sidecar: &Sidecar| sidecar.keyring()["active"]["encrypting"].as_u64().unwrap();
        self.sidecars.iter().map(of).collect()
    }

    fn state_of(&self, version: usize) -> Value {
        self.manifest()["versions"][version - 1].clone()
    }
}

#[test]
fn planned_rotation() {
    let mut scene = Scene::new();
    fs::write(scene.world.path("fast.toml"), FAST).unwrap();
    scene.set(
        "STRATEGY",
        scene.world.path("fast.toml").display().to_string(),
    );
    let backup = scene.world.path("new.age");
    scene.set("BACKUP", backup.display().to_string());
    scene.set("RECIPIENT", scene.holder.recipient().to_owned());
    scene.set("HOLDER", scene.holder.file().to_owned());
    let page = blocks(include_str!("../../docs/runbooks/planned-rotation.md"));
    let (back_out, rotation) = page.split_last().unwrap();
    scene.run(rotation);
    assert_eq!(scene.encrypting(), [2, 2]);
    assert_eq!(scene.manifest()["last_backup"]["newest_version"], 2);
    assert!(scene.world.path("demo-rollout.html").exists());

    let settings = page[0].clone();
    scene.run(&[settings, back_out.clone()]);
    wait("the former primary", || scene.encrypting() == [1, 1]);
}

#[test]
fn compromised_key() {
    let mut scene = Scene::new();
    scene.set("LEAKED", "1");
    scene.set("SIDECAR", format!("http://{}", scene.sidecars[0].ops));
    let page = include_str!("../../docs/runbooks/compromised-key.md");
    scene.run(&blocks(page));
    assert_eq!(scene.encrypting(), [2, 2]);
    let leaked = scene.state_of(1);
    assert_eq!(
        (&leaked["compromised"], &leaked["state"]),
        (&true.into(), &"disabled".into())
    );
    assert!(scene.world.path("demo-compromise.html").exists());
}

#[test]
fn kek_migration() {
    let mut scene = Scene::new();
    scene.variables.remove("NAME");
    let (old, new) = (
        format!("local:{}", scene.world.path("kek").display()),
        scene.kek("new-kek"),
    );
    scene.set("OLD", old);
    scene.set("NEW", new.clone());
    let page = include_str!("../../docs/runbooks/kek-migration.md");
    scene.run(&blocks(page));
    let wraps = scene.state_of(1)["wraps"].clone();
    assert_eq!(wraps.as_array().unwrap().len(), 1);
    assert_eq!(wraps[0]["kek"], new);
    // It starts without the old one.
    fs::remove_file(scene.world.path("kek")).unwrap();
    scene.world.start_with("three", "", &["demo"]);
}

#[test]
fn lost_kek() {
    let mut scene = Scene::new();
    scene.variables.remove("NAME");
    scene.back_up();
    let kek = scene.world.path("kek");
    fs::remove_file(&kek).unwrap();
    scene.set("LOST", format!("local:{}", kek.display()));
    scene.set("NEW", scene.kek("new-kek"));
    let page = include_str!("../../docs/runbooks/lost-kek.md");
    scene.run(&blocks(page));
    scene.world.start_with("three", "", &["demo"]);
}

#[test]
fn lost_store() {
    let mut scene = Scene::new();
    scene
        .world
        .keyring("rotate", "demo", &["--activate", "now"]);
    scene.back_up();
    scene.follow();
    let urls = scene.sidecars.iter();
    let urls = urls.map(|sidecar| format!("--sidecar http://{} ", sidecar.ops));
    scene.set("SIDECARS", urls.collect::<String>());
    let kek = format!("local:{}", scene.world.path("kek").display());
    scene.set("KEK", kek);
    let page = blocks(include_str!("../../docs/runbooks/lost-store.md"));
    let [settings, recovery @ .., more_settings, restoration] = &page[..] else {
        panic!("blocks")
    };
    let settings = [settings.clone(), more_settings.clone()];

    fs::remove_file(scene.world.manifest("demo")).unwrap();
    scene.run(&[&settings[..], recovery].concat());
    assert_eq!(scene.encrypting(), [2, 2]);

    // The sidecars are gone, too.
    scene.sidecars.clear();
    fs::remove_file(scene.world.manifest("demo")).unwrap();
    scene.run(&[&settings[..], std::slice::from_ref(restoration)].concat());
    assert_eq!(scene.manifest()["versions"].as_array().unwrap().len(), 2);
    scene.world.start_with("three", "", &["demo"]);
}

#[tokio::test]
async fn lost_hub() {
    let mut scene = Scene::new();
    scene.variables.remove("NAME");
    scene.variables.remove("M");
    let hub_world = HubWorld::new();
    let text = |name: &str| hub_world.path(name).display().to_string();
    scene.set("CONFIG", text("hub.toml"));
    scene.set("STATE", text(""));
    scene.set("BACKUP", text("copy.db"));
    symlink(
        env!("CARGO_BIN_EXE_sidekey-hub"),
        scene.world.path("bin/sidekey-hub"),
    )
    .unwrap();
    let page = blocks(include_str!("../../docs/runbooks/lost-hub.md"));
    let [settings, before @ .., after] = &page[..] else {
        panic!("blocks")
    };

    let reporter = Reporter::new(1);
    let mut hub = hub_world.start();
    reporter.report(&hub, 1, true).await.ok();
    assert!(hub.terminate().success());
    fs::copy(hub_world.path("hub.db"), hub_world.path("copy.db")).unwrap();
    fs::write(hub_world.path("hub.db"), "damaged").unwrap();
    scene.run(&[std::slice::from_ref(settings), before].concat());
    let hub = hub_world.start();
    let fleet = scene.world.path("fleet.toml");
    let mut text = fs::read_to_string(&fleet).unwrap();
    let token = hub_world.path("operator.token");
    text.push_str(&format!(
        "[hub]\nurl = \"http://{}\"\ntoken_file = {token:?}\n",
        hub.address
    ));
    fs::write(fleet, text).unwrap();
    scene.run(&[settings.clone(), after.clone()]);
    let late = reporter.report(&hub, 2, false).await;
    assert_eq!(late.json()["code"], "report_conflict", "it has ended");
    assert!(hub_world.path("damaged/hub.db").exists());
}

#[test]
fn every_runbook_is_run() {
    let tested = include_str!("runbooks.rs");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runbooks");
    for page in fs::read_dir(folder).unwrap() {
        let name = page.unwrap().file_name().into_string().unwrap();
        let is_run = tested.contains(&format!("docs/runbooks/{name}\""));
        assert!(is_run || name == "README.md", "{name}");
    }
}
