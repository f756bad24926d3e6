//! The template language: MiniJinja, with additions for secrets.
//!
//! A template is one file. Nothing is escaped unless the template asks for it, and undefined values
//! are errors. Plaintext passes through here. It is zeroized except in MiniJinja's own memory.

mod bounds;
mod check;
mod filters;
mod json;
mod values;

use std::{collections::BTreeSet, fmt, sync::Arc};

use minijinja::{
    AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value, context,
    machinery::{self, CompiledTemplate, TemplateConfig},
    syntax::SyntaxConfig,
};
use zeroize::{Zeroize, Zeroizing};

use values::{SafeError, Trace};

pub use values::{Missing, SecretInput, Values, VersionedValue};

/// The largest output, in bytes.
const MAX_OUTPUT: usize = 16 << 20;
/// How many steps a rendering may take: about a tenth of a second. An instruction of MiniJinja is
/// one, and so are 64 bytes of anything that it makes, which bounds what a rendering holds to about
/// 128 MB beside the secrets themselves. What would be longer is refused before it is made.
const MAX_STEPS: u64 = 2_000_000;
/// The stack size of a rendering, in bytes. Nested values are dropped recursively, and the steps
/// limit how deep they can be nested. Memory that is not used is never allocated.
const STACK_SIZE: usize = 256 << 20;

/// A template that can be rendered.
pub struct Template {
    environment: Environment<'static>,
    name: String,
    source: String,
    mentions: Vec<Mention>,
}

/// A secret that a template names literally.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    pub(crate) secret: String,
    /// The line, from 1.
    pub(crate) line: usize,
}

/// An error in a template. It contains no part of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    /// The line, from 1, if it is known.
    pub(crate) line: Option<usize>,
    pub(crate) message: String,
}

/// One attempt at rendering.
pub struct RenderPass {
    /// The output; meaningless if something is missing.
    pub(crate) result: Result<Zeroizing<Vec<u8>>, TemplateError>,
    /// The secrets that the template used.
    pub(crate) used: BTreeSet<String>,
    /// What the template used without having it. Provide it and render again.
    pub(crate) missing: Vec<Missing>,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Template").field(&self.name).finish()
    }
}

impl Template {
    /// Parses and checks a template. Errors refer to it by `name`.
    ///
    /// # Errors
    /// Every error that can be found without values.
    pub fn parse(name: &str, source: String) -> Result<Self, Vec<TemplateError>> {
        check::nesting(&source).map_err(|error| vec![error])?;
        let mut environment = environment();
        if let Err(error) = environment.add_template_owned(name.to_owned(), source.clone()) {
            // There are no values yet that the error could quote.
            let detail = error
                .detail()
                .map_or_else(|| error.kind().to_string(), str::to_owned);
            return Err(vec![TemplateError {
                line: error.line(),
                message: detail,
            }]);
        }
        let mentions = check::examine(&environment, name, &source)?;
        if let Ok(template) = environment.get_template(name) {
            let compiled = machinery::get_compiled_template(&template);
            bounds::refuse_chains(&compiled.instructions).map_err(|error| vec![error])?;
        }
        Ok(Self {
            environment,
            name: name.to_owned(),
            source,
            mentions,
        })
    }

    /// Returns the name that errors use.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the text that was parsed.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Returns the secrets that the template names literally. It can compute further names.
    pub(crate) fn mentions(&self) -> &[Mention] {
        &self.mentions
    }

    /// Renders the template with `values`, on a thread of its own.
    pub(crate) fn render(&self, values: &Values) -> RenderPass {
        let failed = |message: String| RenderPass {
            result: Err(TemplateError {
                line: None,
                message,
            }),
            used: BTreeSet::new(),
            missing: Vec::new(),
        };
        std::thread::scope(|scope| {
            let render = || self.render_here(values);
            match std::thread::Builder::new()
                .name("template".into())
                .stack_size(STACK_SIZE)
                .spawn_scoped(scope, render)
            {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|_| failed("rendering panicked".into())),
                Err(error) => failed(format!("can't start a thread to render on: {error}")),
            }
        })
    }

    fn render_here(&self, values: &Values) -> RenderPass {
        let trace = Arc::new(Trace::new(values.clone()));
        let result = self.write(&trace);
        let (used, missing, undefined) = trace.take();
        let result = result.map_err(|error| self.explain(&error, undefined));
        RenderPass {
            result,
            used,
            missing,
        }
    }

    fn write(&self, trace: &Arc<Trace>) -> Result<Zeroizing<Vec<u8>>, minijinja::Error> {
        let config = TemplateConfig {
            syntax_config: syntax(),
            default_auto_escape: Arc::new(|_| AutoEscape::None),
        };
        let mut compiled = CompiledTemplate::new(&self.name, &self.source, &config)?;
        bounds::replace_operators(&mut compiled.instructions);
        let secrets = Value::from_object(values::Secrets::new(Arc::clone(trace)));
        // A buffer that doesn't grow leaves no copies. Memory that is not used is never allocated.
        let mut text = String::with_capacity(MAX_OUTPUT);
        let result = machinery::eval(
            &self.environment,
            &compiled.instructions,
            context! { secret => secrets },
            &compiled.blocks,
            &mut machinery::make_string_output(&mut text),
            AutoEscape::None,
        );
        let result = result.map(drop);
        let mut written = text.into_bytes();
        let is_too_long = written.len() > MAX_OUTPUT;
        let output = Zeroizing::new(if is_too_long {
            Vec::new()
        } else {
            written.clone()
        });
        // Only what was written, because the rest was never touched.
        written.as_mut_slice().zeroize();
        if is_too_long {
            return Err(ErrorKind::WriteFailure.into());
        }
        result.map(|()| output)
    }

    /// Converts an error to what is safe to show: its kind, its line, and details written here.
    /// MiniJinja's details can quote values.
    fn explain(
        &self,
        error: &minijinja::Error,
        undefined: Option<(String, String)>,
    ) -> TemplateError {
        let mut line = error.line();
        let mut kind = error.kind();
        let mut detail = None;
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            if let Some(inner) = inner.downcast_ref::<minijinja::Error>() {
                (line, kind) = (inner.line().or(line), inner.kind());
            }
            detail =
                detail.or_else(|| inner.downcast_ref::<SafeError>().map(|safe| safe.0.clone()));
            source = inner.source();
        }
        let message = match (detail, kind, undefined) {
            (Some(detail), ..) => detail,
            // A name that the template computes may contain a value. A literal name does not.
            (None, ErrorKind::UndefinedError, Some((secret, member)))
                if self.source.contains(&member) =>
            {
                format!("undefined value: the secret {secret} has no member {member:?}")
            }
            (None, ErrorKind::OutOfFuel, _) => {
                format!("rendering takes more than {MAX_STEPS} steps")
            }
            (None, ErrorKind::WriteFailure, _) => {
                format!("the output exceeds {MAX_OUTPUT} bytes, or a value in it is not text")
            }
            (None, kind, _) => kind.to_string(),
        };
        TemplateError { line, message }
    }
}

/// MiniJinja's default syntax, except that a trailing newline is kept.
fn syntax() -> SyntaxConfig {
    match SyntaxConfig::builder().keep_trailing_newline(true).build() {
        Ok(syntax) => syntax,
        Err(error) => unreachable!("the default delimiters are valid: {error}"),
    }
}

fn environment() -> Environment<'static> {
    let mut environment = plain_environment();
    filters::add(&mut environment);
    bounds::add(&mut environment);
    environment
}

/// An environment with nothing but MiniJinja's own filters, tests and functions.
fn plain_environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax());
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(MAX_STEPS));
    environment
}

#[cfg(test)]
mod tests;
