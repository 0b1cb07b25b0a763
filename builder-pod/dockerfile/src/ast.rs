//! The tree of a Dockerfile: what is written, with places, before any variable is expanded.

use serde::Serialize;

use crate::source::Span;

/// A piece of text and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Word {
    /// The text, quotes and variables as written.
    pub text: String,
    /// Where.
    pub span: Span,
}

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dockerfile {
    /// `# syntax=…` and the like.
    pub directives: Vec<Directive>,
    /// The escape character, `\` or `` ` ``.
    pub escape: char,
    /// All instructions in order, those with errors too.
    pub instructions: Vec<Instruction>,
}

/// A parser directive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: String,
    /// The value as written.
    pub value: String,
    /// The whole line.
    pub span: Span,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Instruction {
    /// The keyword as written.
    pub keyword: Word,
    /// The instruction with continuations joined and surrounding whitespace off, heredocs left out.
    pub source: Word,
    /// First and last line, heredocs included, from 1.
    pub lines: (u32, u32),
    /// Comments directly above.
    pub comments: Vec<Word>,
    /// What it is.
    pub kind: Kind,
}

/// The instructions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// `ADD`.
    Add(Copy),
    /// `ARG`.
    Arg(Vec<Arg>),
    /// `CMD`.
    Cmd(Command),
    /// `COPY`.
    Copy(Copy),
    /// `ENTRYPOINT`.
    Entrypoint(Command),
    /// `ENV`.
    Env(Vec<Pair>),
    /// `EXPOSE`, words in the order that BuildKit gives them: sorted.
    Expose(Vec<Word>),
    /// `FROM`.
    From(From),
    /// `HEALTHCHECK`.
    Healthcheck(Healthcheck),
    /// `LABEL`.
    Label(Vec<Pair>),
    /// `MAINTAINER`.
    Maintainer(Word),
    /// `ONBUILD`.
    Onbuild(Onbuild),
    /// `RUN`.
    Run(Run),
    /// `SHELL`.
    Shell(Vec<Word>),
    /// `STOPSIGNAL`.
    Stopsignal(Word),
    /// `USER`.
    User(Word),
    /// `VOLUME`.
    Volume(Vec<Word>),
    /// `WORKDIR`.
    Workdir(Word),
    /// Something that was reported as an error.
    Invalid,
}

/// `FROM [--platform=…] image [AS name]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct From {
    /// Image or earlier stage, unexpanded.
    pub image: Word,
    /// `--platform`, unexpanded.
    pub platform: Option<Word>,
    /// The stage's name, in lower case.
    pub name: Option<Word>,
}

/// One `name[=default]` of an `ARG`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arg {
    /// Name.
    pub name: Word,
    /// Default, unexpanded.
    pub default: Option<Word>,
}

/// A `key=value` of `ENV` or `LABEL`, unexpanded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Key.
    pub key: Word,
    /// Value.
    pub value: Word,
    /// Written in the old form without `=`.
    pub legacy: bool,
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Command {
    /// Exec form: the arguments. Shell form: at most one text.
    pub args: Vec<Word>,
    /// True for the JSON form.
    pub exec: bool,
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// The command line.
    pub command: Command,
    /// Heredocs in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount` values, unexpanded.
    pub mounts: Vec<Word>,
    /// `--network`.
    pub network: Option<Word>,
    /// `--security`.
    pub security: Option<Word>,
    /// `--device` values.
    pub devices: Vec<Word>,
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Copy {
    /// Paths (and for `ADD` addresses), unexpanded.
    pub sources: Vec<Word>,
    /// Files that are given inline.
    pub heredocs: Vec<Heredoc>,
    /// Destination, unexpanded.
    pub dest: Word,
    /// `--from`.
    pub from: Option<Word>,
    /// `--chown`, unexpanded.
    pub chown: Option<Word>,
    /// `--chmod`, unexpanded.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: Option<Span>,
    /// `--exclude` patterns.
    pub exclude: Vec<Word>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`, unexpanded.
    pub checksum: Option<Word>,
    /// `--unpack`.
    pub unpack: Option<bool>,
}

/// A heredoc and its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Heredoc {
    /// The word after `<<`, quotes off.
    pub name: String,
    /// Where `<<name` stands.
    pub span: Span,
    /// Variables in the body are expanded (`COPY` and `ADD`): the word was not quoted.
    pub expand: bool,
    /// `<<-`: leading tabs of the body go.
    pub chomp: bool,
    /// The body with its line ends, as written.
    pub body: String,
}

impl Heredoc {
    /// The body as a file's contents: leading tabs off where `<<-` asks for it.
    pub fn contents(&self) -> String {
        if !self.chomp {
            return self.body.clone();
        }
        self.body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// `HEALTHCHECK`; durations in nanoseconds, 0 where not given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Healthcheck {
    /// `NONE`, or `CMD`/`CMD-SHELL` and the command.
    pub test: Vec<String>,
    /// `--interval`.
    pub interval: i64,
    /// `--timeout`.
    pub timeout: i64,
    /// `--start-period`.
    pub start_period: i64,
    /// `--start-interval`.
    pub start_interval: i64,
    /// `--retries`.
    pub retries: i64,
}

/// `ONBUILD`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Onbuild {
    /// The trigger as the image config keeps it, heredoc bodies included.
    pub expression: String,
    /// The trigger.
    pub trigger: Box<Instruction>,
}
