//! A network namespace for tests of services that have a fixed address on a real platform.

use std::process::Command;

use super::harness::uid;

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "SIDEKEY_TEST_INSIDE_NAMESPACE";

/// Returns whether the test `name` runs in its own network namespace, whose loopback device has
/// `address`. If not, runs it in one, where it must pass; the caller then has nothing left to do.
pub fn is_inside(name: &str, address: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // Without root, a user namespace provides root's rights.
    let kind = if uid() == 0 {
        "--net"
    } else {
        "--net --map-root-user"
    };
    let script = format!("ip link set lo up && ip addr add {address}/32 dev lo && exec \"$@\"");
    let output = Command::new("unshare")
        .args(kind.split(' '))
        .args(["sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    assert!(
        output.status.success() && out.contains("1 passed"),
        "in a namespace with {address}: {out}{err}"
    );
    false
}
