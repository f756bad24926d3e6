//! Vault's Kubernetes login, with tokens that a real API server issues, binds and revokes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    certificates::issue,
    harness::wait,
    servers::{Brand, Vault, free_port, installed},
    vault::{SIDECAR, init, launch, rotate_and_wait, world_of},
};

const ADMIN: &str = "the-admins-token";
const NAMESPACE: &str = "/api/v1/namespaces/default/serviceaccounts";

/// A Kubernetes API server with its etcd and no kubelet: tokens are real, but pods don't run. Both
/// processes are killed when dropped.
struct Kubernetes {
    children: Vec<Child>,
    folder: PathBuf,
    address: String,
}

impl Kubernetes {
    /// Keeps all files in `folder`, where `issue` has created `api.pem`.
    fn start(folder: &Path) -> Self {
        let (store, peers, port) = (free_port(), free_port(), free_port());
        let at = |name: &str| folder.join(name).display().to_string();
        crate::support::certificates::openssl(folder, &["genrsa", "-out", "accounts.key", "2048"]);
        fs::write(
            folder.join("admins.csv"),
            format!("{ADMIN},admin,1,\"system:masters\"\n"),
        )
        .unwrap();
        let log = |name: &str| Stdio::from(fs::File::create(folder.join(name)).unwrap());
        let store = format!("http://127.0.0.1:{store}");
        let etcd = Command::new("etcd")
            .args([
                "--data-dir",
                &at("etcd"),
                "--listen-client-urls",
                &store,
                "--advertise-client-urls",
                &store,
            ])
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{peers}"))
            .stdin(Stdio::null())
            .stdout(log("etcd.out"))
            .stderr(log("etcd.log"))
            .spawn()
            .unwrap();
        let api = Command::new(installed("bin/kube-apiserver"))
            .args([
                format!("--etcd-servers={store}"),
                format!("--secure-port={port}"),
            ])
            .args([
                "--bind-address=127.0.0.1",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
            ])
            .args([
                "--disable-admission-plugins=ServiceAccount",
                "--service-account-issuer=https://kubernetes.default.svc",
            ])
            .args([
                format!("--tls-cert-file={}", at("api.pem")),
                format!("--tls-private-key-file={}", at("api.key")),
            ])
            .args([format!(
                "--service-account-signing-key-file={}",
                at("accounts.key")
            )])
            .args([format!("--service-account-key-file={}", at("accounts.key"))])
            .args([
                format!("--token-auth-file={}", at("admins.csv")),
                format!("--cert-dir={}", at("certificates")),
            ])
            .stdin(Stdio::null())
            .stdout(log("api.out"))
            .stderr(log("api.log"))
            .spawn()
            .unwrap();
        let (children, folder, address) = (
            vec![etcd, api],
            folder.to_owned(),
            format!("https://127.0.0.1:{port}"),
        );
        let kubernetes = Self {
            children,
            folder,
            address,
        };
        wait("a Kubernetes API server", || {
            kubernetes.request("GET", "/readyz", &Value::Null).is_some()
        });
        // The server creates them a moment after it is ready.
        wait("its namespaces", || {
            kubernetes
                .request("GET", "/api/v1/namespaces/default", &Value::Null)
                .is_some()
        });
        kubernetes
    }

    /// Returns the response to a request by the admin, or `None` if the request failed.
    fn request(&self, method: &str, path: &str, body: &Value) -> Option<String> {
        let script = "import ssl, sys, urllib.request as r\n\
                      url, ca, token, method, body = sys.argv[1:]\n\
                      headers = {'Authorization': 'Bearer ' + token, \
                      'Content-Type': 'application/json'}\n\
                      request = r.Request(url, body.encode() if body != 'null' else None, \
                      headers, method=method)\n\
                      print(r.urlopen(request, \
                      context=ssl.create_default_context(cafile=ca)).read().decode())\n";
        let (url, ca) = (
            format!("{}{path}", self.address),
            self.folder.join("ca.pem"),
        );
        let output = Command::new(installed("moto/bin/python"))
            .args([
                "-c",
                script,
                &url,
                ca.to_str().unwrap(),
                ADMIN,
                method,
                &body.to_string(),
            ])
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn make(&self, path: &str, body: &Value) -> Value {
        let answer = self
            .request("POST", path, body)
            .unwrap_or_else(|| panic!("POST {path} {body}"));
        serde_json::from_str(&answer).unwrap()
    }

    fn make_account(&self, name: &str) {
        self.make(NAMESPACE, &json!({ "metadata": { "name": name } }));
    }

    /// Deleting an account revokes its tokens.
    fn remove_account(&self, name: &str) {
        self.request("DELETE", &format!("{NAMESPACE}/{name}"), &Value::Null)
            .unwrap();
    }

    /// Returns a token as the kubelet projects it into a pod.
    fn token(&self, account: &str, audiences: &[&str]) -> String {
        let body = json!({ "spec": { "audiences": audiences, "expirationSeconds": 3600 } });
        let made = self.make(&format!("{NAMESPACE}/{account}/token"), &body);
        made["status"]["token"].as_str().unwrap().to_owned()
    }

    /// Returns whether the server still accepts a token. It caches acceptance for some seconds.
    fn takes(&self, token: &str) -> bool {
        let review = json!({ "spec": { "token": token, "audiences": ["vault"] } });
        self.make("/apis/authentication.k8s.io/v1/tokenreviews", &review)["status"]["authenticated"]
            == true
    }

    /// Allows an account to review tokens, as Vault does.
    fn let_review(&self, account: &str) {
        let role = json!({
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:auth-delegator",
        });
        let subject = json!({ "kind": "ServiceAccount", "name": account, "namespace": "default" });
        let binding =
            json!({ "metadata": { "name": account }, "roleRef": role, "subjects": [subject] });
        self.make(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            &binding,
        );
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

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
