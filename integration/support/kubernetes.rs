//! Starts a real Kubernetes API server.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    certificates::openssl,
    harness::wait,
    servers::{free_port, installed},
};

const ADMIN: &str = "the-admins-token";
const NAMESPACE: &str = "/api/v1/namespaces/default/serviceaccounts";

/// A Kubernetes API server with its etcd and no kubelet: tokens are real, but pods don't run. Both
/// processes are killed when dropped.
pub struct Kubernetes {
    children: Vec<Child>,
    folder: PathBuf,
    pub address: String,
}

impl Kubernetes {
    /// Keeps all files in `folder`, where `issue` has created `api.pem`.
    pub fn start(folder: &Path) -> Self {
        let (store, peers, port) = (free_port(), free_port(), free_port());
        let at = |name: &str| folder.join(name).display().to_string();
        openssl(folder, &["genrsa", "-out", "accounts.key", "2048"]);
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

    pub fn make_account(&self, name: &str) {
        self.make(NAMESPACE, &json!({ "metadata": { "name": name } }));
    }

    /// Deleting an account revokes its tokens.
    pub fn remove_account(&self, name: &str) {
        self.request("DELETE", &format!("{NAMESPACE}/{name}"), &Value::Null)
            .unwrap();
    }

    /// Returns a token as the kubelet projects it into a pod.
    pub fn token(&self, account: &str, audiences: &[&str]) -> String {
        let body = json!({ "spec": { "audiences": audiences, "expirationSeconds": 3600 } });
        let made = self.make(&format!("{NAMESPACE}/{account}/token"), &body);
        made["status"]["token"].as_str().unwrap().to_owned()
    }

    /// Returns whether the server still accepts a token. It caches acceptance for some seconds.
    pub fn takes(&self, token: &str) -> bool {
        let review = json!({ "spec": { "token": token, "audiences": ["vault"] } });
        self.make("/apis/authentication.k8s.io/v1/tokenreviews", &review)["status"]["authenticated"]
            == true
    }

    /// Allows an account to review tokens, as Vault does.
    pub fn let_review(&self, account: &str) {
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

    /// Creates a namespace whose pods must fulfil the Pod Security Standard "restricted".
    pub fn make_restricted_namespace(&self, name: &str) {
        let labels = json!({
            "pod-security.kubernetes.io/enforce": "restricted",
            "pod-security.kubernetes.io/warn": "restricted",
        });
        self.make(
            "/api/v1/namespaces",
            &json!({ "metadata": { "name": name, "labels": labels } }),
        );
    }

    /// Creates objects, or changes them, by server-side apply. Each is a path and YAML.
    pub fn apply(&self, objects: &[(String, String)]) -> Vec<Applied> {
        self.patch(
            "fieldManager=test&fieldValidation=Strict&force=true",
            objects,
        )
    }

    /// Like [`apply`](Self::apply), but nothing is stored.
    pub fn dry_run(&self, objects: &[(String, String)]) -> Vec<Applied> {
        self.patch(
            "fieldManager=test&fieldValidation=Strict&force=true&dryRun=All",
            objects,
        )
    }

    fn patch(&self, query: &str, objects: &[(String, String)]) -> Vec<Applied> {
        let script = "import json, ssl, sys, urllib.error, urllib.request as r\n\
                      url, ca, token, query = sys.argv[1:]\n\
                      context = ssl.create_default_context(cafile=ca)\n\
                      headers = {'Authorization': 'Bearer ' + token, \
                      'Content-Type': 'application/apply-patch+yaml'}\n\
                      def parsed(text):\n    \
                      try: return json.loads(text)\n    \
                      except ValueError: return text.decode()\n\
                      def send(path, body):\n    \
                      request = r.Request(f'{url}{path}?{query}', body.encode(), headers, \
                      method='PATCH')\n    \
                      try: answer = r.urlopen(request, context=context)\n    \
                      except urllib.error.HTTPError as error: answer = error\n    \
                      return dict(status=answer.status, object=parsed(answer.read()), \
                      warnings=answer.headers.get_all('Warning') or [])\n\
                      print(json.dumps([send(*o) for o in json.load(sys.stdin)]))\n";
        let ca = self.folder.join("ca.pem");
        let mut child = Command::new(installed("moto/bin/python"))
            .args([
                "-c",
                script,
                &self.address,
                ca.to_str().unwrap(),
                ADMIN,
                query,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = serde_json::to_vec(objects).unwrap();
        child.stdin.take().unwrap().write_all(&input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// What the server made of an object.
#[derive(serde::Deserialize)]
pub struct Applied {
    pub status: u16,
    /// The object with its defaults, or the reason why it was refused.
    pub object: Value,
    pub warnings: Vec<String>,
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
