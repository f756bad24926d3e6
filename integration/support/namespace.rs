//! A network of a test's own, for what has a fixed address on a real platform.

use std::process::Command;

use super::harness::uid;

/// Set in the process that runs inside.
const INSIDE: &str = "SIDEKEY_TEST_INSIDE_NAMESPACE";

/// Whether the test `name` runs in a network namespace of its own, whose loopback device has `address`. If not, it is run there, and has
/// to pass; the caller is done then.
pub fn is_inside(name: &str, address: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // Without root's rights, root's part is played in a user namespace.
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
