use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use crate::app::testing::World;

fn put(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rehearsal_finds_what_keeps_a_sidecar_from_starting() {
    let world = World::new();
    put(&world.path("short"), "abc", 0o600);
    put(&world.path("exposed"), &"t".repeat(40), 0o644);
    put(&world.path("token"), &"t".repeat(40), 0o600);
    put(&world.path("junk"), "x", 0o600);
    // Someone may rename the inner one.
    fs::create_dir_all(world.path("open/inner")).unwrap();
    fs::set_permissions(world.path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    let in_open = "[listen]\nsocket = \"open/inner/s\"\nrefuse_writable_folder = ";
    let on_tcp = |token: &str| {
        format!("[listen]\nsocket = \"s\"\ntcp = \"127.0.0.1:0\"\ntoken_file = {token:?}\n")
    };
    let tls = |table: &str| format!("[{table}.tls]\ncertificate = \"junk\"\nkey = \"junk\"\n");
    let faulty = [
        (on_tcp("nowhere"), "can't read the token"),
        (on_tcp("short"), "a token must be one line"),
        (on_tcp("exposed"), "accessible to every user"),
        (tls("ops"), "ops.tls: "),
        (on_tcp("token") + &tls("listen"), "listen.tls: "),
        (
            "[listen]\nsocket = \"nowhere/s\"\n".into(),
            "can't listen on",
        ),
        ("[listen]\nsocket = \"junk\"\n".into(), "is not a socket"),
        (format!("{in_open}true\n"), "every user can write"),
        (
            "[listen]\nsocket = \"s\"\ngroup = \"no-such-group\"\n".into(),
            "no such group",
        ),
        (
            "[listen]\nsocket = \"s\"\nowner = \"no-such-user\"\n".into(),
            "no such user",
        ),
        (
            "[audit]\nfile = \"log\"\nkey_file = \"short\"\n".into(),
            "an audit key has",
        ),
    ];
    for (config, words) in &faulty {
        let (fault, found) = world.faults(config).await;
        let fault = fault.expect(words);
        assert!(fault.contains(words), "{words}: {fault}");
        assert_eq!(found, [fault]);
    }
    let accepted = [String::new(), on_tcp("token"), format!("{in_open}false\n")];
    for config in accepted {
        assert_eq!(world.faults(&config).await, (None, vec![]), "{config}");
    }
    let several = format!(
        "{}group = \"no-such-group\"\n{}",
        on_tcp("short"),
        tls("ops")
    );
    let (fault, found) = world.faults(&several).await;
    assert_eq!(
        (found.len(), found.first()),
        (3, fault.as_ref()),
        "{found:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_rehearsal_disturbs_no_running_sidecar() {
    let world = World::with_demo().await;
    let config = "[listen]\nsocket = \"s\"\n";
    let app = world.start_with(config, &["demo"]).await;
    let (fault, found) = world.faults(config).await;
    assert!(fault.expect("in use").contains("another process listens"));
    assert_eq!(found, [""; 0]);
    app.client().await.encrypt(b"x").await.ok();
}
