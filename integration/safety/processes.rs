//! A sidecar as a process among others.

use std::{fs, process::Command};

use crate::support::{
    exec::{Running, unshared},
    files::put,
    harness::{World, binary, wait},
};

/// The children of a process with one thread.
fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

#[test]
fn the_first_process_of_a_container_reaps_what_commands_leave_behind() {
    let world = World::new();
    put(&world.path("pw"), "one");
    let pipe = world.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let config = format!(
        "[[secret]]\nname = \"pw\"\nsource = \"file:pw\"\n[[render]]\nfile = \"out\"\n\
         secret = \"pw\"\ncommand = [\"sh\", \"-c\", \"setsid cat {} > /dev/null 2>&1 &\"]\n",
        pipe.display()
    );
    let config = world.configure("one", &config, &[]);
    let mut serve = Command::new(binary());
    serve.args(["serve", "--config"]).arg(config);
    let kinds = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut container = Running::of(unshared(&kinds, "exec \"$@\"", &serve));
    container.hear("readers notified");
    let [init] = children(container.child.id())[..] else {
        panic!("unshare has one child")
    };
    // The command has ended, so what it left behind belongs to the sidecar.
    wait("an orphan", || children(init).len() == 1);
    fs::write(&pipe, "the end of input ends it").unwrap();
    wait("no child, not even an ended one", || {
        children(init).is_empty()
    });
}
