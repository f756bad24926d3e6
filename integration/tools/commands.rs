//! The commands' exact output: integration/commands/*.md.

use std::{fs, path::Path};

#[test]
fn commands_print_what_the_transcripts_show() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/commands");
    // The commands change files, so each run gets its own directory next to copies of the pages.
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&pages).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            fs::create_dir_all(
                folder
                    .path()
                    .join(path.with_extension("in").file_name().unwrap()),
            )
            .unwrap();
        }
    }
    for config in ["good.toml", "bad.toml"] {
        fs::copy(
            pages.join("check.in").join(config),
            folder.path().join("check.in").join(config),
        )
        .unwrap();
    }
    let cases = trycmd::TestCases::new();
    cases.register_bin("sh", Path::new("/bin/sh"));
    let state = folder.path().join("state").display().to_string();
    cases.env("SIDEKEY_STATE_DIR", state);
    cases.case(folder.path().join("*.md"));
    cases.run();
}
