//! Files owned by another user, which only root can create.

use std::{fs, os::unix::fs::MetadataExt};

use serde_json::{Value, json};

use crate::support::{
    files::without,
    harness::{World, require_root},
    in_place::{Setting, temporary_files},
};

#[tokio::test]
async fn a_file_whose_owner_cannot_be_preserved_is_skipped() {
    require_root();
    let mut s = Setting::new().await;
    let old = s.texts(&["a"], "").await.remove(0);
    let (theirs, ours) = (s.write("theirs.txt", &old), s.write("ours.txt", &old));
    s.rotate();
    std::os::unix::fs::chown(&theirs, Some(4321), Some(4321)).unwrap();
    let output = without("-chown")
        .args(s.arguments(&[&s.tree], &[]))
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(s.opened(&ours, "").await, "<2:a>");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(
        (
            &report["failures"][0]["code"],
            &report["ciphertexts"]["failed"]
        ),
        (&json!("attributes"), &json!(1))
    );
    assert_eq!(
        (
            fs::read_to_string(&theirs).unwrap(),
            fs::metadata(&theirs).unwrap().uid()
        ),
        (old, 4321)
    );
    // With the capability, the owner is kept.
    s.rewrap_all();
    assert_eq!(
        (
            s.opened(&theirs, "").await.as_str(),
            fs::metadata(&theirs).unwrap().uid()
        ),
        ("<2:a>", 4321)
    );
    assert_eq!(temporary_files(&s.tree), 0);
}

#[test]
fn a_rendered_file_gets_its_owner_and_group() {
    require_root();
    let world = World::new();
    fs::write(world.path("db"), "s3cret").unwrap();
    let config = "[[secret]]\nname = \"db\"\nsource = \"file:db\"\n\
                  [[render]]\nfile = \"out\"\nsecret = \"db\"\nmode = \"0440\"\n\
                  owner = 1234\ngroup = 2345\n";
    let _sidecar = world.start_with("one", config, &[]);
    assert_eq!(fs::read_to_string(world.path("out")).unwrap(), "s3cret");
    let metadata = fs::metadata(world.path("out")).unwrap();
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        (0o440, 1234, 2345)
    );
}
