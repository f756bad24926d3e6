//! Where requests go: AWS' own endpoints, or what the config, the environment or a profile names in their place.

use aws_config::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use hyper::Uri;

use crate::backend::plain_http;

/// The services that are talked to, as the SDK's settings name them. STS gives credentials for a web identity.
const SERVICES: [&str; 5] = ["KMS", "S3", "Secrets Manager", "SSM", "STS"];

/// Whether every URL that stands in for one of AWS' own may be talked to.
///
/// # Errors
/// A sentence that names the URL and the setting that it comes from.
pub(super) fn check(sdk: &SdkConfig, plain_http: &[String]) -> Result<(), String> {
    for service in SERVICES {
        let Some(endpoint) = of(sdk, service) else {
            continue;
        };
        let of_whom = || {
            let variable = service.to_uppercase().replace(' ', "_");
            format!(
                "for {service}: `aws.endpoint`, AWS_ENDPOINT_URL_{variable}, AWS_ENDPOINT_URL, or endpoint_url in the profile"
            )
        };
        let url: Uri = endpoint
            .parse()
            .map_err(|_| format!("{endpoint} is not a URL ({})", of_whom()))?;
        plain_http::allows(&url, plain_http)
            .map_err(|reason| format!("{reason} ({})", of_whom()))?;
    }
    Ok(())
}

/// The URL that stands in for a service's own, found as the SDK finds it.
pub(super) fn of(sdk: &SdkConfig, service: &str) -> Option<String> {
    let everywhere = || sdk.endpoint_url().map(str::to_owned);
    if sdk.get_origin("endpoint_url").is_client_config() {
        return everywhere();
    }
    let key = ServiceConfigKey::builder()
        .service_id(service)
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .ok()?;
    sdk.service_config()
        .and_then(|settings| settings.load_config(key))
        .or_else(everywhere)
}
