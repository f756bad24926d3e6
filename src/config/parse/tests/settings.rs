use std::time::Duration;

use super::*;
use crate::{
    config::{Confirm, LogFormat},
    model::{KekScope, Location, Operation},
};

#[test]
fn a_full_file_sets_every_value() {
    let s = parsed(FULL);
    assert_eq!(s.wave.as_str(), "canary");

    assert_eq!(s.listen.socket, Path::new("/run/sidekey/sidekey.sock"));
    assert_eq!(
        (
            s.listen.mode,
            s.listen.owner.as_deref(),
            s.listen.group.as_deref()
        ),
        (0o600, Some("app"), Some("1000"))
    );
    let tcp = s.listen.tcp.expect("tcp");
    assert_eq!(
        (tcp.address.to_string().as_str(), tcp.token_file.as_path()),
        ("[::1]:8200", Path::new("/etc/sidekey/token"))
    );
    assert_eq!(s.ops.listen.to_string(), "0.0.0.0:9000");
    assert_eq!(s.ops.hosts, ["sidekey.prod.svc"]);

    let Limits {
        body,
        json_body,
        body_memory,
        batch_items,
        connections,
        header_bytes,
        streams,
    } = s.limits;
    assert_eq!(
        (body, json_body, body_memory),
        (2 << 20, 8 << 20, 128 << 20)
    );
    assert_eq!(
        (batch_items, connections, header_bytes, streams),
        (10, 20, 8 << 10, 30)
    );

    let Timeouts {
        header,
        body,
        idle,
        drain,
    } = s.timeouts;
    assert_eq!(
        [header, body, idle, drain].map(|d| d.as_secs()),
        [1, 2, 90, 86_400]
    );
    assert_eq!(
        (s.log.format, s.log.filter.as_str()),
        (LogFormat::Json, "info,sidekey=debug")
    );

    let Refresh {
        poll,
        read_timeout,
        kek_timeout,
        unknown_interval,
        miss_ttl,
        manifest_bytes,
        max_backoff,
        hedge,
        cache_dir,
    } = s.refresh;
    assert_eq!(cache_dir.as_deref(), Some(Path::new("/etc/sidekey/copies")));
    assert_eq!(
        (poll, manifest_bytes),
        (Duration::from_millis(100), 32 << 20)
    );
    assert_eq!(
        [
            read_timeout,
            kek_timeout,
            unknown_interval,
            miss_ttl,
            max_backoff,
            hedge
        ]
        .map(|d| d.as_secs()),
        [3, 4, 5, 6, 7, 8]
    );
    assert_eq!(s.runtime.workers, Some(2));
}

#[test]
fn a_full_file_defines_keyrings_and_policy() {
    let s = parsed(FULL);
    let [orders, users] = &s.keyrings[..] else {
        panic!("{:?}", s.keyrings)
    };
    assert_eq!(
        (orders.name.as_str(), orders.confirm, orders.min_generation),
        ("orders", Confirm::Stamp, u64::MAX)
    );
    assert_eq!(
        orders.location,
        Location::File("/etc/sidekey/orders.json".into())
    );
    assert_eq!(
        orders
            .trusted_signers
            .iter()
            .map(|signer| signer.0)
            .collect::<Vec<_>>(),
        [[0; 32]]
    );
    assert_eq!(orders.wave.as_ref().map(Wave::as_str), Some("critical"));
    let kek = |uri: &str| users.keks.covers(&uri.parse().expect("URI"));
    assert!(
        kek("local:/etc/sidekey/keks/one")
            && kek("aws-kms:alias/users")
            && !kek("aws-kms:alias/orders")
    );
    assert_eq!(orders.keks, KekScope::Any);
    assert_eq!(users.location, Location::File("/var/lib/users.json".into()));

    let [named, every] = &s.policy[..] else {
        panic!("{:?}", s.policy)
    };
    assert_eq!(named.keyrings.as_deref(), Some(&[orders.name.clone()][..]));
    assert_eq!(named.operations, [Operation::Encrypt, Operation::Inspect]);
    assert_eq!(
        (&named.uids[..], &named.gids[..], named.token),
        (&[1000, 0][..], &[0, 7][..], false)
    );
    // An operation that hands out a key must be named.
    let implied = [
        Operation::Encrypt,
        Operation::Decrypt,
        Operation::Rewrap,
        Operation::Inspect,
    ];
    assert_eq!(
        (
            every.keyrings.as_deref(),
            &every.operations[..],
            every.token
        ),
        (None, &implied[..], true)
    );
}

#[test]
fn a_minimal_file_gets_the_defaults() {
    let s = parsed(MINIMAL);
    assert_eq!((s.wave.as_str(), s.listen.mode), ("standard", 0o660));
    assert!(s.listen.owner.is_none() && s.listen.group.is_none() && s.listen.tcp.is_none());
    assert_eq!(s.ops.listen.to_string(), "127.0.0.1:9464");
    assert_eq!(
        format!("{:?}", s.limits),
        format!("{:?}", Limits::default())
    );
    assert_eq!(
        format!("{:?}", s.timeouts),
        format!("{:?}", Timeouts::default())
    );
    assert_eq!(format!("{:?}", s.log), format!("{:?}", Log::default()));
    assert_eq!(
        format!("{:?}", s.refresh),
        format!("{:?}", Refresh::default())
    );
    assert_eq!(s.runtime.workers, None);
    let [keyring] = &s.keyrings[..] else {
        panic!("{:?}", s.keyrings)
    };
    assert_eq!(
        (keyring.confirm, keyring.min_generation, &keyring.wave),
        (Confirm::Read, 0, &None)
    );
    assert!(keyring.trusted_signers.is_empty() && s.policy.is_empty());
}

#[test]
fn relative_paths_resolve_against_the_files_folder() {
    let s = parsed(MINIMAL);
    assert_eq!(s.listen.socket, Path::new("/etc/sidekey/sidekey.sock"));
    assert_eq!(
        s.keyrings[0].location,
        Location::File("/etc/sidekey/orders.json".into())
    );

    let here = std::env::current_dir().expect("working directory");
    let s = parse(Path::new("sidekey.toml"), MINIMAL).expect("settings");
    assert_eq!(
        s.keyrings[0].location,
        Location::File(here.join("orders.json"))
    );
}

#[test]
fn loading_names_the_file_that_cant_be_read() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("none.toml");
    let error = load(&file).expect_err("no file").to_string();
    assert!(
        error.starts_with(&format!("can't read {}: ", file.display())),
        "{error}"
    );

    fs::write(&file, MINIMAL).expect("written");
    assert_eq!(
        load(&file).expect("settings").listen.socket,
        folder.path().join("sidekey.sock")
    );
    fs::write(&file, "wave = 1").expect("written");
    assert!(matches!(load(&file), Err(LoadError::Invalid(problems)) if problems.items.len() == 3));
}
