//! The stores themselves.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3CopyIfNotExists};
use object_store::azure::{AzureAuthorizer, MicrosoftAzureBuilder};
use object_store::client::{HttpConnector as _, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::settings::{Azure, S3};

type Failed = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failed>;

/// A store that does not answer for so long is not there.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const CONNECT_MAX: Duration = Duration::from_secs(10);

fn client(is_http: bool) -> ClientOptions {
    // A blob may take as long as it takes; what ends it is silence.
    ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(SILENCE_MAX)
        .with_connect_timeout(CONNECT_MAX)
        .with_allow_http(is_http)
}

fn retry(attempts: usize) -> RetryConfig {
    RetryConfig {
        max_retries: attempts.saturating_sub(1),
        retry_timeout: SILENCE_MAX,
        ..RetryConfig::default()
    }
}

/// A store, and the same to make objects young.
type Stores = (Arc<dyn ObjectStore>, Arc<dyn ObjectStore>);

/// S3, and the same to make objects young.
pub(crate) fn s3(s3: &S3) -> std::result::Result<Stores, object_store::Error> {
    let mut builder = match &s3.credentials {
        Some((key, secret, token)) => {
            let builder = AmazonS3Builder::new()
                .with_access_key_id(key.reveal())
                .with_secret_access_key(secret.reveal());
            match token {
                Some(token) => builder.with_token(token.reveal()),
                None => builder,
            }
        }
        None => AmazonS3Builder::from_env(),
    };
    let is_http = s3.endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
    builder = builder
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_client_options(client(is_http))
        .with_retry(retry(s3.attempts));
    builder = match (&s3.endpoint, s3.path_style) {
        (Some(url), true) => builder.with_endpoint(url).with_virtual_hosted_style_request(false),
        (Some(url), false) => {
            let host = url.replacen("://", &format!("://{}.", s3.bucket), 1);
            builder.with_endpoint(host).with_virtual_hosted_style_request(true)
        }
        (None, _) => builder.with_virtual_hosted_style_request(!s3.bucket.contains('.')),
    };
    // S3 copies an object onto itself when something of it changes by that: its metadata, which are replaced by none.
    let replace = S3CopyIfNotExists::Header("x-amz-metadata-directive".to_owned(), "REPLACE".to_owned());
    let touch = builder.clone().with_copy_if_not_exists(replace).build()?;
    Ok((Arc::new(builder.build()?), Arc::new(touch)))
}

/// Azure's, with its container made where it is not there.
pub(crate) async fn azure(azure: &Azure) -> std::result::Result<Arc<dyn ObjectStore>, Problem> {
    reach(azure).await.map_err(Problem)
}

/// Whatever keeps a container from being reached.
#[derive(Debug)]
pub(crate) struct Problem(Failed);

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Problem {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

async fn reach(azure: &Azure) -> Result<Arc<dyn ObjectStore>> {
    let is_http = azure.url.starts_with("http://");
    let builder = match &azure.key {
        Some(key) => MicrosoftAzureBuilder::new().with_access_key(key.reveal()),
        None => MicrosoftAzureBuilder::from_env(),
    };
    let store = builder
        .with_account(&azure.account)
        .with_container_name(&azure.container)
        .with_endpoint(azure.url.trim_end_matches('/').to_owned())
        .with_client_options(client(is_http))
        .with_retry(retry(3))
        .build()?;
    let credential = store.credentials().get_credential().await?;
    let http = ReqwestConnector::default().connect(&client(is_http))?;
    let ask = |method: &str| -> Result<HttpRequest> {
        let url = format!("{}/{}?restype=container", azure.url.trim_end_matches('/'), azure.container);
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method.parse()?;
        *request.uri_mut() = url.parse()?;
        if method == "PUT" {
            request.headers_mut().insert("content-length", 0.into());
        }
        AzureAuthorizer::new(&credential, &azure.account).try_authorize(&mut request)?;
        Ok(request)
    };
    let there = http.execute(ask("GET")?).await?.status().as_u16();
    let made = match there {
        404 => http.execute(ask("PUT")?).await?.status().as_u16(),
        other => other,
    };
    match made {
        // 409: somebody else was faster.
        200..=299 | 409 => Ok(Arc::new(store)),
        status => Err(format!(
            "container {} of account {} answers with status {status}",
            azure.container, azure.account
        )
        .into()),
    }
}
