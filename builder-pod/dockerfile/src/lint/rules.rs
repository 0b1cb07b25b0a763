//! The rules.

use serde::Serialize;

use crate::suggest;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its name, by which `# check=` lines call it.
    pub name: &'static str,
    /// What it asks for, in one sentence.
    pub description: &'static str,
    /// Where it is described; empty where it is not.
    pub url: &'static str,
    /// BuildKit has it, with this name and these texts.
    pub of_buildkit: bool,
    /// It reports without being asked for.
    pub by_default: bool,
    /// The way out.
    pub help: Option<&'static str>,
    /// Why it is a rule.
    pub why: &'static str,
    /// A Dockerfile that it complains about.
    pub bad: &'static str,
    /// The same as it should be.
    pub good: &'static str,
}

/// The rule of this name.
pub fn rule(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name == name)
}

/// The name of a rule that looks like `name`.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    suggest::nearest(name, RULES.iter().map(|rule| rule.name))
}

/// Examples are files, so that other linters can be shown them too.
macro_rules! rules {
    ($($name:ident {
        description: $description:literal,
        url: $url:expr,
        of_buildkit: $of_buildkit:literal,
        by_default: $by_default:literal,
        help: $help:expr,
        why: $why:literal,
    })*) => {
        /// All rules: BuildKit's, then ours.
        pub const RULES: &[Rule] = &[$(Rule {
            name: stringify!($name),
            description: $description,
            url: $url,
            of_buildkit: $of_buildkit,
            by_default: $by_default,
            help: $help,
            why: $why,
            bad: include_str!(concat!("../../lint/", stringify!($name), "/bad.Dockerfile")),
            good: include_str!(concat!("../../lint/", stringify!($name), "/good.Dockerfile")),
        }),*];
    };
}

rules! {
    StageNameCasing {
        description: "Stage names should be lowercase",
        url: "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/",
        of_buildkit: true,
        by_default: true,
        help: Some("write the name in lower case"),
        why: "Names of stages are compared in lower case; a name that looks otherwise reads as if there could be two.",
    }
    FromAsCasing {
        description: "The 'as' keyword should match the case of the 'from' keyword",
        url: "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
        of_buildkit: true,
        by_default: true,
        help: None,
        why: "One line in two ways of writing is harder to read.",
    }
    NoEmptyContinuation {
        description: "Empty continuation lines will become errors in a future release",
        url: "https://docs.docker.com/go/dockerfile/rule/no-empty-continuation/",
        of_buildkit: true,
        by_default: true,
        help: Some("remove the line, or make it a comment"),
        why: "An empty line after a \\ looks like the end of the instruction, but is none.",
    }
    ConsistentInstructionCasing {
        description: "All commands within the Dockerfile should use the same casing (either upper or lower)",
        url: "https://docs.docker.com/go/dockerfile/rule/consistent-instruction-casing/",
        of_buildkit: true,
        by_default: true,
        help: None,
        why: "Instructions are found at a glance when all of them look alike.",
    }
    DuplicateStageName {
        description: "Stage names should be unique",
        url: "https://docs.docker.com/go/dockerfile/rule/duplicate-stage-name/",
        of_buildkit: true,
        by_default: true,
        help: Some("give one of them another name"),
        why: "A name stands for the last stage that bears it; the others can't be copied from any more.",
    }
    ReservedStageName {
        description: "Reserved words should not be used as stage names",
        url: "https://docs.docker.com/go/dockerfile/rule/reserved-stage-name/",
        of_buildkit: true,
        by_default: true,
        help: Some("give it another name"),
        why: "`scratch` and `context` mean something else already.",
    }
    JSONArgsRecommended {
        description: "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
        url: "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/",
        of_buildkit: true,
        by_default: true,
        help: Some("write it as a JSON array, or choose a SHELL to say that it is meant so"),
        why: "In shell form the program is a child of a shell that does not pass signals on: it is killed instead of being told to end.",
    }
    MaintainerDeprecated {
        description: "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
        url: "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/",
        of_buildkit: true,
        by_default: true,
        help: Some("write LABEL org.opencontainers.image.authors=…"),
        why: "Tools look for the label; the instruction may go.",
    }
    UndefinedArgInFrom {
        description: "FROM command must use declared ARGs",
        url: "https://docs.docker.com/go/dockerfile/rule/undefined-arg-in-from/",
        of_buildkit: true,
        by_default: true,
        help: Some("declare it with ARG before the first FROM"),
        why: "What is not declared before the first `FROM` is empty there.",
    }
    WorkdirRelativePath {
        description: "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
        url: "https://docs.docker.com/go/dockerfile/rule/workdir-relative-path/",
        of_buildkit: true,
        by_default: true,
        help: Some("begin the path with /"),
        why: "It depends on the directory that the base image happens to have.",
    }
    UndefinedVar {
        description: "Variables should be defined before their use",
        url: "https://docs.docker.com/go/dockerfile/rule/undefined-var/",
        of_buildkit: true,
        by_default: true,
        help: Some("declare it with ARG or ENV above"),
        why: "A variable that is not set is empty, which is seldom what was meant.",
    }
    MultipleInstructionsDisallowed {
        description: "Multiple instructions of the same type should not be used in the same stage",
        url: "https://docs.docker.com/go/dockerfile/rule/multiple-instructions-disallowed/",
        of_buildkit: true,
        by_default: true,
        help: Some("remove this one"),
        why: "Only the last `CMD`, `ENTRYPOINT` or `HEALTHCHECK` of a stage counts.",
    }
    LegacyKeyValueFormat {
        description: "Legacy key/value format with whitespace separator should not be used",
        url: "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/",
        of_buildkit: true,
        by_default: true,
        help: Some("put = between name and value"),
        why: "In the old form the whole rest of the line is the value, quotes and all.",
    }
    InvalidBaseImagePlatform {
        description: "Base image platform does not match expected target platform",
        url: "",
        of_buildkit: true,
        by_default: true,
        help: Some("take an image that has this platform, or say the other with FROM --platform"),
        why: "Its programs do not run on the platform that is built for, at best they are emulated.",
    }
    RedundantTargetPlatform {
        description: "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        url: "https://docs.docker.com/go/dockerfile/rule/redundant-target-platform/",
        of_buildkit: true,
        by_default: true,
        help: Some("leave --platform out"),
        why: "It is what happens anyway, and hides the places where another platform is meant.",
    }
    SecretsUsedInArgOrEnv {
        description: "Sensitive data should not be used in the ARG or ENV commands",
        url: "https://docs.docker.com/go/dockerfile/rule/secrets-used-in-arg-or-env/",
        of_buildkit: true,
        by_default: true,
        help: Some("give it to the step that needs it: RUN --mount=type=secret,id=…"),
        why: "Arguments stand in the image's history and variables in its config, for everybody who can pull it.",
    }
    InvalidDefaultArgInFrom {
        description: "Default value for global ARG results in an empty or invalid base image name",
        url: "https://docs.docker.com/go/dockerfile/rule/invalid-default-arg-in-from/",
        of_buildkit: true,
        by_default: true,
        help: Some("give the ARG a default that makes a name"),
        why: "The file can only be built by those who know which argument to give.",
    }
    FromPlatformFlagConstDisallowed {
        description: "FROM --platform flag should not use a constant value",
        url: "https://docs.docker.com/go/dockerfile/rule/from-platform-flag-const-disallowed/",
        of_buildkit: true,
        by_default: true,
        help: Some("leave it out, take $BUILDPLATFORM, or name the stage after the platform"),
        why: "The stage is of this platform whatever is built for.",
    }
    CopyIgnoredFile {
        description: "Attempting to Copy file that is excluded by .dockerignore",
        url: "https://docs.docker.com/go/dockerfile/rule/copy-ignored-file/",
        of_buildkit: true,
        by_default: true,
        help: Some("take it out of .dockerignore, or don't copy it"),
        why: "What the ignore file leaves out is not there for `COPY`: the step fails, or copies less than it seems to.",
    }
    InvalidDefinitionDescription {
        description: "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.",
        url: "https://docs.docker.com/go/dockerfile/rule/invalid-definition-description/",
        of_buildkit: true,
        by_default: false,
        help: Some("begin the comment with the name, or put an empty comment between"),
        why: "Clients show such comments as descriptions of arguments and targets.",
    }
    ExposeProtoCasing {
        description: "Protocol in EXPOSE instruction should be lowercase",
        url: "https://docs.docker.com/go/dockerfile/rule/expose-proto-casing/",
        of_buildkit: true,
        by_default: true,
        help: Some("write it in lower case"),
        why: "Tools that read the config compare it as it stands.",
    }
    ExposeInvalidFormat {
        description: "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
        url: "https://docs.docker.com/go/dockerfile/rule/expose-invalid-format/",
        of_buildkit: true,
        by_default: true,
        help: Some("name the port of the container alone"),
        why: "Where a port is published is decided when the container is run; here it is ignored.",
    }
    CacheMountWithoutEffect {
        description: "A cache mount should keep what the step puts there",
        url: "docs/lint.md#cachemountwithouteffect",
        of_buildkit: false,
        by_default: true,
        help: Some("leave the cleaning out, since a mount is no part of the image, or leave the mount out"),
        why: "The command empties the directory that the mount should keep, or is told not to use it: nothing is there the next time.",
    }
    PackageListsLeft {
        description: "Lists and caches of a package manager should not stay in a layer",
        url: "docs/lint.md#packagelistsleft",
        of_buildkit: false,
        by_default: true,
        help: Some("remove them in the same RUN, or keep them in a cache mount"),
        why: "They are of no use to who runs the image, and a later `RUN rm` does not make the layer smaller. Only the stages that the result is made of are looked at.",
    }
    UpdateWithoutInstall {
        description: "Package lists should be updated in the RUN that installs",
        url: "docs/lint.md#updatewithoutinstall",
        of_buildkit: false,
        by_default: true,
        help: Some("join it with the RUN that installs: apt-get update && apt-get install -y …"),
        why: "The layer with the lists comes from the cache when the packages below change, and old lists name packages that are gone.",
    }
    InstallWithoutYes {
        description: "Installing packages should not wait for an answer",
        url: "docs/lint.md#installwithoutyes",
        of_buildkit: false,
        by_default: true,
        help: Some("add -y"),
        why: "Nobody answers in a build: the command ends without having installed anything.",
    }
    CdWithoutEffect {
        description: "A RUN that only changes the directory has no effect",
        url: "docs/lint.md#cdwithouteffect",
        of_buildkit: false,
        by_default: true,
        help: Some("use WORKDIR"),
        why: "Each `RUN` has a shell of its own; the next one starts in the working directory again.",
    }
    ExportWithoutEffect {
        description: "A RUN that only sets variables has no effect",
        url: "docs/lint.md#exportwithouteffect",
        of_buildkit: false,
        by_default: true,
        help: Some("use ENV, or set it in the RUN that needs it"),
        why: "Each `RUN` has a shell of its own; its variables end with it.",
    }
    GlobalArgNotInStage {
        description: "An ARG from before the first FROM is not set in a stage that does not declare it",
        url: "docs/lint.md#globalargnotinstage",
        of_buildkit: false,
        by_default: true,
        help: Some("declare it in the stage: ARG without a value takes the global one"),
        why: "Arguments from before the first `FROM` are for `FROM` lines. In a `RUN` of a stage the shell finds them empty.",
    }
    EntrypointHidesCmd {
        description: "CMD has no effect beside an ENTRYPOINT in shell form",
        url: "docs/lint.md#entrypointhidescmd",
        of_buildkit: false,
        by_default: true,
        help: Some("write ENTRYPOINT as a JSON array"),
        why: "`CMD` is handed to the entrypoint as arguments, and the shell that runs a text drops them.",
    }
    SecretCopied {
        description: "Files that hold secrets should not be copied into an image",
        url: "docs/lint.md#secretcopied",
        of_buildkit: false,
        by_default: true,
        help: Some("mount it in the step that needs it: RUN --mount=type=secret,id=…"),
        why: "Whoever can pull the image can read it, and a later `RUN rm` only hides it.",
    }
    AddWithoutNeed {
        description: "ADD should be used for what COPY can't do",
        url: "docs/lint.md#addwithoutneed",
        of_buildkit: false,
        by_default: true,
        help: Some("use COPY"),
        why: "`ADD` unpacks what happens to be an archive, and fetches what looks like an address; `COPY` does what it says.",
    }
    CopyBeforeInstall {
        description: "Dependencies should be installed before everything is copied",
        url: "docs/lint.md#copybeforeinstall",
        of_buildkit: false,
        by_default: true,
        help: Some("copy the files that name the dependencies first, install, and copy the rest after that"),
        why: "Any change of any file makes the installation run again.",
    }
    CopyMissingFile {
        description: "What is copied should be in the context",
        url: "docs/lint.md#copymissingfile",
        of_buildkit: false,
        by_default: true,
        help: Some("paths are relative to the root of the context, wherever the Dockerfile is"),
        why: "The step fails. `check` looks into the directory that it is given; a build says the same when it gets there.",
    }
    LargeContextWithoutIgnore {
        description: "A large context should have a .dockerignore",
        url: "docs/lint.md#largecontextwithoutignore",
        of_buildkit: false,
        by_default: true,
        help: Some("add a .dockerignore that leaves out what the image does not need"),
        why: "All of it is read, and counts for what comes from the cache, where a `COPY` takes the whole directory.",
    }
    UnpinnedBaseImage {
        description: "Base images should be named by digest",
        url: "docs/lint.md#unpinnedbaseimage",
        of_buildkit: false,
        by_default: false,
        help: Some("add @sha256:… to the name"),
        why: "A tag may stand for another image tomorrow, so that the same file gives another result.",
    }
    LatestBaseImage {
        description: "Base images should be named with a version",
        url: "docs/lint.md#latestbaseimage",
        of_buildkit: false,
        by_default: false,
        help: Some("name a version"),
        why: "`latest` moves to the next major version without asking.",
    }
    RootUser {
        description: "An image should not run as root",
        url: "docs/lint.md#rootuser",
        of_buildkit: false,
        by_default: false,
        help: Some("add USER with a number or a name that is no root"),
        why: "What breaks out of a process of root is root.",
    }
    PipeWithoutPipefail {
        description: "A failure in a pipe should end the step",
        url: "docs/lint.md#pipewithoutpipefail",
        of_buildkit: false,
        by_default: false,
        help: Some("add SHELL [\"/bin/sh\", \"-eo\", \"pipefail\", \"-c\"] where the shell knows it, or set -o pipefail"),
        why: "A shell looks at the last command of a pipe only: a download that failed is taken for one that was empty.",
    }
    OwnershipInLayer {
        description: "Owner and mode of copied files should be set where they are copied",
        url: "docs/lint.md#ownershipinlayer",
        of_buildkit: false,
        by_default: false,
        help: Some("use COPY --chown=… or --chmod=…"),
        why: "`RUN chown -R` writes every file into another layer once more.",
    }
    SudoInRun {
        description: "sudo should not be used in a RUN",
        url: "docs/lint.md#sudoinrun",
        of_buildkit: false,
        by_default: false,
        help: Some("say who runs it with USER"),
        why: "Steps run as root unless `USER` says otherwise; `sudo` is one more program that the image carries.",
    }
    UnusedStage {
        description: "A stage should be needed by another or be a target",
        url: "docs/lint.md#unusedstage",
        of_buildkit: false,
        by_default: false,
        help: Some("remove it, or build it with --target"),
        why: "Nothing comes of it: what nobody needs is never run.",
    }
}
