//! Endpoints: AWS's own, or a URL from the config, the environment or a profile.

use aws_config::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use hyper::Uri;

use crate::backend::plain_http;

/// The services in use, as the SDK names them.
pub(super) const SERVICES: &[&str] = &["KMS", "S3", "Secrets Manager", "SSM"];
/// The services that issue credentials. For them, `aws.endpoint` doesn't count: the SDK reads their
/// endpoints from the environment and the profile only.
pub(super) const LOGIN_SERVICES: &[&str] = &["STS"];

/// Checks that every custom endpoint of `services` uses TLS, or plain HTTP to an allowed host.
///
/// # Errors
/// A sentence that names the URL and the settings it may come from.
pub(super) fn check(
    sdk: &SdkConfig,
    services: &[&str],
    plain_http: &[String],
) -> Result<(), String> {
    for service in services {
        let Some(endpoint) = custom_endpoint(sdk, service) else {
            continue;
        };
        let origin = || {
            let variable = service.to_uppercase().replace(' ', "_");
            format!(
                "for {service}: `aws.endpoint`, AWS_ENDPOINT_URL_{variable}, AWS_ENDPOINT_URL, or \
                 endpoint_url in the profile"
            )
        };
        let url: Uri = endpoint
            .parse()
            .map_err(|_| format!("{endpoint} is not a URL ({})", origin()))?;
        plain_http::check(&url, plain_http).map_err(|reason| format!("{reason} ({})", origin()))?;
    }
    Ok(())
}

/// Returns the custom endpoint of a service, looked up in the same order as in the SDK.
pub(super) fn custom_endpoint(sdk: &SdkConfig, service: &str) -> Option<String> {
    let for_all_services = || sdk.endpoint_url().map(str::to_owned);
    if sdk.get_origin("endpoint_url").is_client_config() {
        return for_all_services();
    }
    let key = ServiceConfigKey::builder()
        .service_id(service)
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .ok()?;
    sdk.service_config()
        .and_then(|settings| settings.load_config(key))
        .or_else(for_all_services)
}
