//! KEKs in Azure Key Vault, against a fake that is verified with Microsoft's own client.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::support::{
    azure::{config, fake},
    azure_fake::{ASSERTION, AzureFake, CLIENT, SECRET, TENANT},
    harness::{Sidecar, World, wait},
    namespace::is_inside,
    servers::installed,
    small_server::{self, Reply, header},
};

fn keyring(world: &World, command: &str, extra: &[&str]) -> std::process::Output {
    let (manifest, config) = (
        world.manifest("demo").display().to_string(),
        world.path("azure.toml").display().to_string(),
    );
    world.run(&[&["keyring", command, &manifest, "--config", &config], extra].concat())
}

fn succeed(world: &World, command: &str, extra: &[&str]) {
    let output = keyring(world, command, extra);
    assert!(output.status.success(), "{command} {extra:?}: {output:?}");
}

fn start(world: &World, fake: &AzureFake, login: &str, keks: &[&str]) -> Sidecar {
    let sidecar = world.launch("one", &config(world, fake, login, keks), &[]);
    sidecar.wait_ready();
    sidecar
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn microsofts_clients_agree_with_the_fake() {
    let (world, fake) = fake().await;
    let script = format!(
        "from azure.core.exceptions import HttpResponseError, ResourceNotFoundError\n\
         from azure.identity import ClientSecretCredential\n\
         from azure.keyvault.keys import KeyClient\n\
         from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm as A\n\
         from azure.keyvault.secrets import SecretClient\n\
         tls = dict(connection_verify={:?})\n\
         login = ClientSecretCredential({TENANT:?}, {CLIENT:?}, {SECRET:?}, authority={url:?}, \
         disable_instance_discovery=True, **tls)\n\
         keys = KeyClient({url:?}, login, verify_challenge_resource=False, **tls)\n\
         key = keys.create_rsa_key('kek', size=2048)\n\
         assert keys.get_key('kek').id == key.id\n\
         # By id alone, so that nothing is done locally.\n\
         far = CryptographyClient(key.id, login, verify_challenge_resource=False, **tls)\n\
         near = CryptographyClient(key, login, verify_challenge_resource=False, **tls)\n\
         for client in (far, near):\n\
         \x20   wrapped = client.wrap_key(A.rsa_oaep_256, b'k' * 64)\n\
         \x20   assert far.unwrap_key(A.rsa_oaep_256, wrapped.encrypted_key).key == b'k' * 64\n\
         secrets = SecretClient({url:?}, login, verify_challenge_resource=False, **tls)\n\
         made = [secrets.set_secret('db', value, content_type='text/plain') for value in 'abcde']\n\
         assert secrets.get_secret('db').value == 'e' and \
         secrets.get_secret('db').id == made[4].id\n\
         assert secrets.get_secret('db', made[0].properties.version).value == 'a'\n\
         assert made[0].properties.created_on < made[1].properties.created_on\n\
         listed = list(secrets.list_properties_of_secret_versions('db'))\n\
         assert [known.version for known in listed] == \
         [secret.properties.version for secret in made]\n\
         assert all(known.enabled for known in listed)\n\
         secrets.update_secret_properties('db', made[4].properties.version, enabled=False)\n\
         try:\n\
         \x20   secrets.get_secret('db')\n\
         \x20   assert False\n\
         except HttpResponseError as error:\n\
         \x20   assert error.status_code == 403 and \
         error.error.innererror['code'] == 'SecretDisabled', error\n\
         secrets.begin_delete_secret('db').wait()\n\
         try:\n\
         \x20   secrets.get_secret('db', made[0].properties.version)\n\
         \x20   assert False\n\
         except ResourceNotFoundError:\n\
         \x20   pass\n\
         secrets.begin_recover_deleted_secret('db').wait()\n\
         assert secrets.get_secret('db', made[3].properties.version).value == 'd'\n",
        world.path("ca.pem"),
        url = fake.url,
    );
    let output = Command::new(installed("moto/bin/python"))
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyring_lives_under_an_rsa_key_and_moves_to_a_managed_hsms() {
    let (world, fake) = fake().await;
    fake.make_rsa("kek");
    fake.shorten_tokens();
    let kek = format!("azure-kv:{}/keys/kek", fake.url);
    succeed(&world, "init", &["--name", "demo", "--kek", &kek]);
    let sidecar = start(&world, &fake, "client-secret", &[]);
    let first = sidecar.client().await.encrypt(b"Ada").await.ok();
    // Rotating the key in Azure doesn't affect existing wraps.
    fake.make_rsa("kek");
    succeed(&world, "rotate", &["--activate", "now"]);
    sidecar.wait_generation(3);
    succeed(&world, "verify", &[]);
    // Expired tokens are replaced.
    fake.end_tokens();
    succeed(&world, "rotate", &["--activate", "now"]);
    sidecar.wait_generation(5);
    wait("the third version", || {
        sidecar.keyring()["active"]["encrypting"] == 3
    });
    drop(sidecar);

    fake.make_oct("hsm");
    let hsm = format!("azure-kv:{}/keys/hsm", fake.url);
    succeed(&world, "rewrap-kek", &["--add", &hsm, "--remove", &kek]);
    let sidecar = start(&world, &fake, "workload-identity", &[&hsm]);
    assert_eq!(
        sidecar.client().await.decrypt(&first.body).await.ok().body,
        "Ada"
    );
    let shown = format!(
        "{}{}{}",
        sidecar.log(),
        sidecar.ops("/status").1,
        sidecar.ops("/metrics").1
    );
    assert!(
        !shown.contains(SECRET) && !shown.contains(ASSERTION) && !shown.contains("token-"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_reported_with_a_remedy() {
    let (world, fake) = fake().await;
    fake.make_rsa("kek");
    let kek = format!("azure-kv:{}/keys/kek", fake.url);
    succeed(&world, "init", &["--name", "demo", "--kek", &kek]);
    let fails = |command: &str, extra: &[&str], why: &str| {
        let output = keyring(&world, command, extra);
        assert_eq!(output.status.code(), Some(1), "{command} {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains(why) && !said.contains(SECRET),
            "{why}: {said}"
        );
    };
    fake.disable("kek", true);
    fails("verify", &[], "enable the key or its version");
    fake.disable("kek", false);
    fake.deny(true);
    fails("verify", &[], "the key permission unwrapKey");
    fake.deny(false);
    fails(
        "rotate",
        &["--kek", &format!("azure-kv:{}/keys/nope", fake.url)],
        "check the name of the vault and of the key",
    );
    fails(
        "rotate",
        &["--kek", "azure-kv:https://vault/secrets/a"],
        "expected azure-kv:https://VAULT/keys/NAME",
    );
    fails(
        "rotate",
        &["--kek", "azure-kv:http://vault.example/keys/a"],
        "backends.plain_http",
    );
    fs::write(world.path("secret"), "wrong").unwrap();
    fails("verify", &[], "can't log in");
    fs::write(world.path("secret"), SECRET).unwrap();
    // The system's authorities didn't issue the fake's certificate.
    let text = fs::read_to_string(world.path("azure.toml")).unwrap();
    fs::write(
        world.path("azure.toml"),
        text.replace("ca_file = \"ca.pem\"\n", ""),
    )
    .unwrap();
    fails("verify", &[], "not trusted here");
}

/// Creates a keyring under a key of the fake with a client secret, then starts a sidecar that has
/// only the login `login`.
async fn logs_in_by(
    login: &str,
    env: impl FnOnce(&World, &AzureFake) -> Vec<(&'static str, String)>,
) {
    let (mut world, fake) = fake().await;
    fake.make_rsa("kek");
    succeed(
        &world,
        "init",
        &[
            "--name",
            "demo",
            "--kek",
            &format!("azure-kv:{}/keys/kek", fake.url),
        ],
    );
    fake.end_tokens();
    let env = env(&world, &fake);
    world.env.extend(env);
    let text = config(&world, &fake, login, &[]);
    // A managed identity has another client id than the tests' application.
    let text: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("client_"))
        .collect();
    fs::write(world.path("other.toml"), text.join("\n")).unwrap();
    let sidecar = world.launch_config("other", "one");
    sidecar.wait_ready();
    assert!(
        !sidecar.log().contains("a-granted-token"),
        "{}",
        sidecar.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_managed_identity_logs_in_at_a_fake_of_its_platform() {
    let platform = |_: &World, fake: &AzureFake| {
        fake.grant("a-granted-token");
        let url = small_server::serve(|head| {
            let path = head.split(' ').nth(1).unwrap_or_default();
            let is_for_us = path.contains("resource=https%3A%2F%2Fvault.azure.net")
                && path.contains("api-version=2019-08-01");
            if !is_for_us || header(head, "x-identity-header") != Some("a-header-of-the-platform") {
                return Reply::new("400 Bad Request", "", "{}");
            }
            let token = serde_json::json!({
                "access_token": "a-granted-token",
                "expires_on": "4000000000",
                "token_type": "Bearer",
                "resource": "https://vault.azure.net",
            });
            Reply::new(
                "200 OK",
                "Content-Type: application/json\r\n",
                token.to_string(),
            )
        });
        vec![
            ("IDENTITY_ENDPOINT", format!("{url}/msi/token")),
            ("IDENTITY_HEADER", "a-header-of-the-platform".into()),
        ]
    };
    logs_in_by("managed-identity", platform).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_virtual_machines_identity_logs_in_at_a_fake_of_its_metadata_service() {
    const METADATA: &str = "169.254.169.254";
    if !is_inside(
        "azure::keys::a_virtual_machines_identity_logs_in_at_a_fake_of_its_metadata_service",
        METADATA,
    ) {
        return;
    }
    let platform = |_: &World, fake: &AzureFake| {
        fake.grant("a-granted-token");
        small_server::serve_at(&format!("{METADATA}:80"), |head| {
            let path = head.split(' ').nth(1).unwrap_or_default();
            let is_for_us = path.starts_with("/metadata/identity/oauth2/token?")
                && path.contains("api-version=2019-08-01")
                && path.contains("resource=https%3A%2F%2Fvault.azure.net");
            // Without this header, the request could be forged through another client (SSRF).
            if !is_for_us || header(head, "metadata") != Some("true") {
                return Reply::new("400 Bad Request", "", r#"{"error":"invalid_request"}"#);
            }
            let token = serde_json::json!({
                "access_token": "a-granted-token",
                "client_id": CLIENT,
                "expires_in": "86399",
                "expires_on": "4000000000",
                "ext_expires_in": "86399",
                "not_before": "1700000000",
                "resource": "https://vault.azure.net",
                "token_type": "Bearer",
            });
            Reply::new(
                "200 OK",
                "Content-Type: application/json\r\n",
                token.to_string(),
            )
        });
        // Variables that would select another platform's service.
        vec![("AZURE_FEDERATED_TOKEN_FILE", String::new())]
    };
    logs_in_by("managed-identity", platform).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_azure_cli_login_is_used() {
    let az = |world: &World, fake: &AzureFake| {
        fake.grant("a-granted-token");
        let script = "#!/bin/sh\ncase \"$*\" in\n*'account get-access-token'*vault.azure.net*) ;;\n\
            *) exit 1 ;;\nesac\n\
            echo '{\"accessToken\": \"a-granted-token\", \
            \"expiresOn\": \"2096-10-02 07:06:40.000000\", \
            \"expires_on\": 4000000000, \"subscription\": \"s\", \
            \"tenant\": \"t\", \"tokenType\": \"Bearer\"}'\n";
        fs::create_dir(world.path("bin")).unwrap();
        fs::write(world.path("bin/az"), script).unwrap();
        fs::set_permissions(world.path("bin/az"), fs::Permissions::from_mode(0o755)).unwrap();
        vec![(
            "PATH",
            format!(
                "{}:{}",
                world.path("bin").display(),
                std::env::var("PATH").unwrap()
            ),
        )]
    };
    logs_in_by("cli", az).await;
}
