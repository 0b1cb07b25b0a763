//! `gateway.v0`: frontends that are images. Each runs as a program in its image, and speaks `LLBBridge` over its
//! standard input and output.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use lapstrake_api::health::health_server::HealthServer;
use lapstrake_api::{LlbBridgeServer, pb};
use serde_json::json;
use tokio::net::UnixStream;
use tonic::Status;

use super::answer::{Answer, Ref};
use super::bridge::{Bridge, Frontend};
use super::build::Asked;
use super::errors::status;
use super::health;
use super::host::{Host, platform};
use super::job::Job;
use super::trail::Trail;
use crate::engine::{Program, native_platform};
use crate::error::BuildError;
use crate::policy::Policies;

/// What a frontend is that names no program.
const PROGRAM_DEFAULT: &str = "/run";
/// The label by which an image says that it needs no network.
const NO_NETWORK: &str = "moby.buildkit.frontend.network.none";
/// The label by which an image says what it can be asked.
const CAPS: &str = "moby.buildkit.frontend.caps";
/// What a frontend must be able to that is given definitions.
const INPUTS: &str = "moby.buildkit.frontend.inputs";
/// Of what a frontend printed, so much goes along with its failure.
const PRINTED_BYTES_MAX: usize = 2048;

fn refused(why: impl Into<String>) -> Status {
    Status::unknown(why.into())
}

/// Asks the frontend that is this image.
pub(crate) async fn solve(
    host: &Arc<Host>,
    job: &Arc<Job>,
    trail: &Arc<Trail>,
    image: &str,
    asked: Asked,
) -> Result<Answer, Status> {
    if image.is_empty() {
        return Err(Status::invalid_argument("no source specified for gateway"));
    }
    let native = native_platform();
    let named = image.parse::<lapstrake_oci::Reference>();
    let named = named.map_err(|e| Status::invalid_argument(format!("frontend {image}: {e}")))?;
    if !host.frontends.allows_gateway_from(&named.name()) {
        return Err(Status::permission_denied(format!("'{image}' is not an allowed gateway source")));
    }
    let step = job.progress.step(&format!("resolve image config for docker-image://{named}"));
    let found =
        async { job.engine.images().resolve(&job.engine.policies().image(&named, &native)?, &native).await };
    let found = step.close(found.await).map_err(|e| status(&e))?;
    let root = root(&found.reference.to_string()).map_err(|e| status(&e))?;
    let tree = root.tree(job).await.map_err(|e| status(&e))?.clone();
    let snapshot = job.engine.snapshot_of(&tree, &job.cancel).await.map_err(|e| status(&e))?;
    let config = found.config.config.clone();
    check_caps(config.labels.get(CAPS).map(String::as_str).unwrap_or_default(), &asked)?;

    let frontend = Arc::new(Frontend {
        job: Arc::clone(job),
        trail: Arc::clone(trail),
        inputs: asked.inputs,
        returned: Mutex::default(),
    });
    let program = Program {
        args: config
            .entrypoint
            .clone()
            .filter(|args| !args.is_empty())
            .unwrap_or(vec![PROGRAM_DEFAULT.to_owned()]),
        env: environment(host, job, config.env.clone(), &with_source(asked.opts, image)),
        cwd: config.working_dir.clone(),
        user: String::new(),
        network: config.labels.get(NO_NETWORK).is_none_or(|value| value.parse() != Ok(true)),
    };
    let (ours, theirs) = UnixStream::pair().map_err(|e| status(&BuildError::internal(e)))?;
    let theirs = theirs.into_std().and_then(|theirs| {
        theirs.set_nonblocking(false)?;
        Ok(OwnedFd::from(theirs))
    });
    let theirs = theirs.map_err(|e| status(&BuildError::internal(e)))?;
    let bridge = Bridge::for_frontend(Arc::clone(host), Arc::clone(&frontend));
    let bridge = LlbBridgeServer::new(bridge);
    let serving = tonic::transport::Server::builder()
        .add_service(bridge)
        .add_service(HealthServer::new(health::Serving))
        .serve_with_incoming(futures::StreamExt::chain(
            tokio_stream::once(Ok::<_, std::io::Error>(ours)),
            futures::stream::pending(),
        ));
    let serving = tokio::spawn(serving);
    let _ends = Ends(serving.abort_handle());
    let mut printed = Vec::new();
    let mut log = |bytes: &[u8]| {
        tracing::debug!("{image}: {}", String::from_utf8_lossy(bytes).trim_end());
        printed.extend_from_slice(bytes);
        let beyond = printed.len().saturating_sub(PRINTED_BYTES_MAX);
        printed.drain(..beyond);
    };
    let exit = job.engine.run_program(snapshot, program, theirs, &mut log, &job.cancel).await;
    let returned = frontend.returned.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (returned, exit) {
        (Some(returned), _) => returned,
        (None, Err(error)) => {
            let named =
                error.with(|failure| failure.message = format!("frontend {image}: {}", failure.message));
            Err(status(&named))
        }
        (None, Ok(exit)) => {
            let said = String::from_utf8_lossy(&printed);
            let why = format!("frontend {image} ended with exit code {} and returned nothing", exit.code);
            Err(refused(if said.trim().is_empty() { why } else { format!("{why}: {}", said.trim()) }))
        }
    }
}

/// Ends a task when it is dropped.
struct Ends(tokio::task::AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A frontend that was named in a file is told which image it is, and that it need not look again.
pub(super) fn with_source(mut opts: HashMap<String, String>, image: &str) -> HashMap<String, String> {
    opts.insert("source".to_owned(), image.to_owned());
    opts.entry("cmdline".to_owned()).or_insert_with(|| image.to_owned());
    opts
}

/// The file system of an image.
fn root(name: &str) -> Result<Arc<Ref>, BuildError> {
    let mut builder = lapstrake_llb::Builder::new();
    let source = pb::SourceOp { identifier: format!("docker-image://{name}"), ..Default::default() };
    let op = pb::Op {
        op: Some(pb::op::Op::Source(source)),
        platform: Some(platform(&native_platform())),
        ..Default::default()
    };
    let vertex = builder.add(&op, pb::OpMetadata::default(), &[]);
    // Its name has been judged.
    Ref::new(builder.finish(Some(lapstrake_llb::Output { vertex, index: 0 })), &Policies::default())
}

/// What the request needs and the image does not say that it can.
fn check_caps(can: &str, asked: &Asked) -> Result<(), Status> {
    let can: Vec<&str> = can.split(',').map(str::trim).collect();
    let needs = asked.opts.get("frontend.caps").map(String::as_str).unwrap_or_default();
    let inputs = (!asked.inputs.is_empty()).then_some(INPUTS);
    for need in needs.split(',').map(str::trim).filter(|need| !need.is_empty()).chain(inputs) {
        // With `+` what is meant is that it is better with it.
        if !need.ends_with('+') && !can.contains(&need) {
            return Err(Status::unimplemented(format!("unsupported frontend capability {need}")));
        }
    }
    Ok(())
}

fn environment(host: &Host, job: &Job, mut env: Vec<String>, opts: &HashMap<String, String>) -> Vec<String> {
    let mut sorted: Vec<_> = opts.iter().collect();
    sorted.sort();
    for (number, (key, value)) in sorted.into_iter().enumerate() {
        env.push(format!("BUILDKIT_FRONTEND_OPT_{number}={key}={value}"));
    }
    env.push(format!("BUILDKIT_SESSION_ID={}", job.session));
    let worker = &host.worker;
    let platforms: Vec<_> = worker
        .platforms
        .iter()
        .map(|p| match p.variant.as_str() {
            "" => json!({"architecture": p.architecture, "os": p.os}),
            variant => json!({"architecture": p.architecture, "os": p.os, "variant": variant}),
        })
        .collect();
    let workers = json!([{"ID": worker.id, "Labels": worker.labels, "Platforms": platforms}]);
    env.push(format!("BUILDKIT_WORKERS={workers}"));
    env.push("BUILDKIT_EXPORTEDPRODUCT=".to_owned());
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_frontend_can_not_is_told_before_it_is_started() {
        let asked = |caps: &str| Asked {
            definition: None,
            frontend: String::new(),
            opts: [("frontend.caps".to_owned(), caps.to_owned())].into(),
            inputs: HashMap::new(),
            imports: Vec::new(),
            policies: Policies::default(),
        };
        assert!(check_caps("a,b", &asked("a,c+")).is_ok());
        let refused = check_caps("a", &asked("a,c")).expect_err("c is needed");
        assert!(refused.message().contains("capability c"));
    }
}
