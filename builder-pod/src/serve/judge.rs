//! Policies that a client decides by its session (`SourcePolicySession`): each source of a build is put before it.

use std::sync::Weak;
use std::time::Duration;

use lapstrake_api::frontend::{
    ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use lapstrake_api::pb::SourceOp;
use lapstrake_api::policysession::check_policy_response::Result as Answer;
use lapstrake_api::policysession::{CheckPolicyRequest, DecisionResponse};
use lapstrake_api::sourcepolicy::PolicyAction;
use lapstrake_session::{Session, Sessions};

use crate::engine::Engine;
use crate::policy::{Error, Judge, Question};

/// A session may still be on its way.
const SESSION_WAIT: Duration = Duration::from_secs(5);
/// A client that decides nothing for so long has gone to sleep.
const DECISION_MAX: Duration = Duration::from_secs(300);

/// The client of a build, as its judge.
pub(crate) struct SessionJudge {
    sessions: Sessions,
    session: String,
    engine: Weak<Engine>,
    runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for SessionJudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SessionJudge").field(&self.session).finish()
    }
}

impl SessionJudge {
    /// The client of this session judges what the engine is to bring. Called on the runtime's threads.
    pub(crate) fn new(sessions: Sessions, session: &str, engine: Weak<Engine>) -> Self {
        Self { sessions, session: session.to_owned(), engine, runtime: tokio::runtime::Handle::current() }
    }

    async fn decide(&self, asked: &mut Question<'_>) -> Result<DecisionResponse, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Unjudged(error.to_string());
        let session = self.sessions.get(&self.session, SESSION_WAIT).await.map_err(|e| failed(&e))?;
        let op = asked.op.clone();
        let source = Some(ResolveSourceMetaResponse { source: Some(op.clone()), ..Default::default() });
        let platform = asked.platform.cloned();
        let mut request = CheckPolicyRequest { source, platform, ..Default::default() };
        loop {
            asked.ask()?;
            match ask(&session, request.clone()).await? {
                Answer::Decision(decision) => return Ok(decision),
                Answer::Request(question) => request.source = Some(self.look(&op, &question).await?),
            }
        }
    }

    /// What a client wants to know of a source.
    async fn look(
        &self,
        op: &SourceOp,
        question: &ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, Error> {
        let wrong = |why: String| Error::Unjudged(why);
        let about = question.source.clone().unwrap_or_default();
        if about.identifier != op.identifier {
            let why = format!(
                "policy requested different source identifier: {:?} != {:?}",
                about.identifier, op.identifier
            );
            return Err(wrong(why));
        }
        if about.attrs != op.attrs {
            return Err(wrong("policy requested different source attrs".to_owned()));
        }
        let engine = self.engine.upgrade().ok_or_else(|| wrong("the build is over".to_owned()))?;
        let failed = |error: crate::error::BuildError| {
            wrong(format!("error resolving source metadata from policy request: {error}"))
        };
        let answer = ResolveSourceMetaResponse { source: Some(op.clone()), ..Default::default() };
        if let Some(name) = op.identifier.strip_prefix("docker-image://") {
            let platform = super::bridge::platform_of(question.platform.as_ref());
            let found = engine.images().resolve_text(name, &platform).await.map_err(failed)?;
            let no_config = question.image.as_ref().is_some_and(|image| image.no_config);
            let config = match no_config {
                true => Vec::new(),
                false => engine.images().config_bytes(&found).map_err(failed)?,
            };
            let digest = found.digest.to_string();
            let asked = question.image.as_ref();
            let chain = super::bridge::chain_of(&engine, name, question.platform.as_ref(), asked).await;
            let attestation_chain = chain.map_err(failed)?;
            let image = Some(ResolveSourceImageResponse { digest, config, attestation_chain });
            return Ok(ResolveSourceMetaResponse { image, ..answer });
        }
        let objects = question.git.as_ref().is_some_and(|git| git.return_object);
        let facts = engine.facts_of(op, objects).await.map_err(failed)?;
        Ok(facts.map_or_else(|| answer.clone(), |facts| super::bridge::told(facts, answer.clone())))
    }
}

async fn ask(session: &Session, request: CheckPolicyRequest) -> Result<Answer, Error> {
    let answer = tokio::time::timeout(DECISION_MAX, session.check_policy(request)).await;
    let late = |_| Error::Unjudged("the client does not decide about a source".to_owned());
    let answer = answer.map_err(late)?.map_err(|e| Error::Unjudged(e.to_string()))?;
    answer.result.ok_or_else(|| Error::Unjudged("no decision in policy response".to_owned()))
}

impl Judge for SessionJudge {
    fn check(&self, asked: &mut Question<'_>) -> Result<bool, Error> {
        // Rules are looked at where nothing waits; what is done here may take as long as a client takes.
        let decided = tokio::task::block_in_place(|| self.runtime.block_on(self.decide(asked)))?;
        match PolicyAction::try_from(decided.action) {
            Ok(PolicyAction::Allow) => Ok(false),
            Ok(PolicyAction::Convert) => {
                let missing = || Error::Unjudged("convert action requires updated source".to_owned());
                *asked.op = decided.update.ok_or_else(missing)?;
                Ok(true)
            }
            other => Err(Error::NotAllowed {
                identifier: asked.op.identifier.clone(),
                action: other.map_or_else(|_| decided.action.to_string(), |a| a.as_str_name().to_owned()),
                messages: decided.deny_messages.into_iter().map(|one| one.message).collect(),
            }),
        }
    }
}
