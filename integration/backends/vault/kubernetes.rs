//! Vault's Kubernetes login, with tokens that a real API server issues, binds and revokes.

use std::fs;

use crate::support::{
    certificates::issue,
    harness::wait,
    kubernetes::Kubernetes,
    servers::{Brand, Vault},
    vault::{SIDECAR, init, launch, rotate_and_wait, world_of},
};

fn a_projected_service_account_token_logs_in_and_again_when_it_is_rewritten(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    init(&world, world.manifest("demo").to_str().unwrap());
    let folder = world.path("");
    issue(&folder, &[("api", "subjectAltName=IP:127.0.0.1")]);
    let kubernetes = Kubernetes::start(&folder);
    for account in ["vault", "orders", "nobody"] {
        kubernetes.make_account(account);
    }
    kubernetes.let_review("vault");
    vault.run(&["auth", "enable", "kubernetes"]);
    let reviewer = kubernetes.token("vault", &[]);
    let ca = format!("kubernetes_ca_cert=@{}", world.path("ca.pem").display());
    let host = format!("kubernetes_host={}", kubernetes.address);
    vault.run(&[
        "write",
        "auth/kubernetes/config",
        &host,
        &ca,
        &format!("token_reviewer_jwt={reviewer}"),
    ]);
    vault.policy("sidecar", SIDECAR);
    let bounds = [
        "bound_service_account_names=orders",
        "bound_service_account_namespaces=default",
        "audience=vault",
    ];
    vault.run(
        &[
            &[
                "write",
                "auth/kubernetes/role/app",
                "token_policies=sidecar",
            ],
            &bounds[..],
        ]
        .concat(),
    );

    let project = |token: String| {
        // Atomic replacement, as the kubelet does it.
        fs::write(world.path("next"), token).unwrap();
        fs::rename(world.path("next"), world.path("projected")).unwrap();
    };
    let login = "method = \"kubernetes\"\nrole = \"app\"\ntoken_file = \"projected\"";
    project(kubernetes.token("nobody", &["vault"]));
    let sidecar = launch(&world, &vault, "demo.json", login);
    wait("the refusal of another account", || {
        sidecar
            .ops("/readyz")
            .1
            .contains("can't log in at auth/kubernetes")
    });
    project(kubernetes.token("orders", &["elsewhere"]));
    wait("the refusal of another audience", || {
        let error = &sidecar.keyring()["last_error"]["message"];
        error
            .as_str()
            .is_some_and(|error| error.contains("audience") || error.contains("permission denied"))
    });
    let first = kubernetes.token("orders", &["vault"]);
    project(first.clone());
    sidecar.wait_ready();

    // The login with the first token is revoked, and the API server no longer accepts that token.
    kubernetes.remove_account("orders");
    kubernetes.make_account("orders");
    wait("the first token's end", || !kubernetes.takes(&first));
    vault.run(&[
        "lease",
        "revoke",
        "-force",
        "-prefix",
        "auth/kubernetes/login",
    ]);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    wait("the reason", || {
        let error = &sidecar.keyring()["last_error"]["message"];
        error
            .as_str()
            .is_some_and(|error| error.contains("can't log in at auth/kubernetes"))
    });
    assert_eq!(sidecar.ops("/readyz").0, 200, "it keeps serving");
    project(kubernetes.token("orders", &["vault"]));
    wait("the new version", || {
        sidecar.keyring()["active"]["encrypting"] == 2
    });
    rotate_and_wait(&world, &sidecar, 3);
    let shown = format!(
        "{}{}{}",
        sidecar.log(),
        sidecar.ops("/status").1,
        sidecar.ops("/metrics").1
    );
    // The prefix of every such token.
    assert!(!shown.contains("eyJ"), "{shown}");
}

#[test]
fn with_vault() {
    a_projected_service_account_token_logs_in_and_again_when_it_is_rewritten(Brand::Vault);
}

#[test]
fn with_openbao() {
    a_projected_service_account_token_logs_in_and_again_when_it_is_rewritten(Brand::OpenBao);
}
