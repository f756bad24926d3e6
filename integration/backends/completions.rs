//! The output of `sidekey completions`, used by a shell.

use std::{fs, process::Command};

use crate::support::harness::run;

#[test]
fn bash_completes_a_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(&["completions", "bash"]);
    assert!(output.status.success(), "{output:?}");
    let file = folder.path().join("sidekey.bash");
    fs::write(&file, &output.stdout).unwrap();
    // Completes as a shell does after `sidekey keyring rew`.
    let ask = "source \"$0\"; COMP_WORDS=(sidekey keyring rew); COMP_CWORD=2; \
               _sidekey sidekey rew keyring; echo \"${COMPREPLY[@]}\"";
    let completed = Command::new("bash")
        .args(["-c", ask])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&completed.stdout).trim(),
        "rewrap-kek",
        "{completed:?}"
    );
}
