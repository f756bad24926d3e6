//! The language of templates: MiniJinja, and what templates of secrets need besides. A template is one file; nothing is escaped unless
//! it asks for that, and what isn't defined is an error. Plaintext passes through here, in memory that is zeroized as far as it is ours.

mod check;
mod filters;
mod output;
mod values;

use std::{collections::BTreeSet, fmt, sync::Arc};

use minijinja::{
    AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value, context, syntax::SyntaxConfig,
};
use zeroize::Zeroizing;

use output::Output;
use values::{Own, Trace};

pub use values::{Given, Held, Values, Want};

/// The longest output, in bytes.
const LONGEST: usize = 16 << 20;
/// How many steps a rendering may take, as MiniJinja counts them: about a tenth of a second's worth.
const STEPS: u64 = 2_000_000;
/// The stack of a rendering, in bytes. Values that hold each other are dropped one within the other, as deep as the steps allow to nest
/// them; what is not used of it costs nothing.
const STACK: usize = 256 << 20;

/// A template that is fit to be rendered.
pub struct Template {
    environment: Environment<'static>,
    name: String,
    source: String,
    mentions: Vec<Mention>,
}

/// A secret that a template names in so many words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// The name.
    pub secret: String,
    /// The line, from 1.
    pub line: usize,
}

/// What is wrong with a template. It holds nothing of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// What is wrong there.
    pub message: String,
}

/// One attempt at rendering.
pub struct Pass {
    /// The output; meaningless if something is wanted.
    pub result: Result<Zeroizing<Vec<u8>>, Fault>,
    /// The secrets that were asked for.
    pub used: BTreeSet<String>,
    /// What was asked for and not given: give it and render again.
    pub wants: Vec<Want>,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Template").field(&self.name).finish()
    }
}

impl Template {
    /// Reads a template. `name` is what faults call it.
    ///
    /// # Errors
    /// Everything that is wrong with it and can be told without values.
    pub fn parse(name: &str, source: String) -> Result<Self, Vec<Fault>> {
        check::nesting(&source).map_err(|fault| vec![fault])?;
        let mut environment = environment();
        if let Err(error) = environment.add_template_owned(name.to_owned(), source.clone()) {
            // Nothing has a value yet, so the whole error may be told.
            let detail = error
                .detail()
                .map_or_else(|| error.kind().to_string(), str::to_owned);
            return Err(vec![Fault {
                line: error.line(),
                message: detail,
            }]);
        }
        let mentions = check::examine(&environment, name, &source)?;
        Ok(Self {
            environment,
            name: name.to_owned(),
            source,
            mentions,
        })
    }

    /// What faults call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The secrets that it names in so many words. It may make up further names.
    pub fn mentions(&self) -> &[Mention] {
        &self.mentions
    }

    /// Renders it with what is given.
    pub fn render(&self, values: &Values) -> Pass {
        let cant = |why: String| Pass {
            result: Err(Fault {
                line: None,
                message: why,
            }),
            used: BTreeSet::new(),
            wants: Vec::new(),
        };
        std::thread::scope(|scope| {
            let render = || self.render_here(values);
            match std::thread::Builder::new()
                .name("template".into())
                .stack_size(STACK)
                .spawn_scoped(scope, render)
            {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|_| cant("rendering was given up".into())),
                Err(error) => cant(format!("there is no thread to render it on: {error}")),
            }
        })
    }

    fn render_here(&self, values: &Values) -> Pass {
        let trace = Arc::new(Trace::new(values.clone()));
        let result = self.write(&trace);
        let (used, wants, missing) = trace.take();
        let result = result.map_err(|error| self.fault(&error, missing));
        Pass {
            result,
            used,
            wants,
        }
    }

    fn write(&self, trace: &Arc<Trace>) -> Result<Zeroizing<Vec<u8>>, minijinja::Error> {
        let template = self.environment.get_template(&self.name)?;
        let mut output = Output::new(LONGEST);
        let secrets = Value::from_object(values::Secrets(Arc::clone(trace)));
        template.render_captured_to(context! { secret => secrets }, &mut output)?;
        Ok(output.into_bytes())
    }

    /// What may be told of an error: its kind and place, and details of our own making. MiniJinja's may quote values.
    fn fault(&self, error: &minijinja::Error, missing: Option<(String, String)>) -> Fault {
        let mut line = error.line();
        let mut kind = error.kind();
        let mut own = None;
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            if let Some(inner) = inner.downcast_ref::<minijinja::Error>() {
                (line, kind) = (inner.line().or(line), inner.kind());
            }
            own = own.or_else(|| inner.downcast_ref::<Own>().map(|own| own.0.clone()));
            source = inner.source();
        }
        let message = match (own, kind, missing) {
            (Some(own), ..) => own,
            // A name that the template makes up at run time may be made of a value; one that stands in it isn't.
            (None, ErrorKind::UndefinedError, Some((secret, member)))
                if self.source.contains(&member) =>
            {
                format!("undefined value: the secret {secret} has no member {member:?}")
            }
            (None, ErrorKind::OutOfFuel, _) => format!("it takes more than {STEPS} steps"),
            (None, ErrorKind::WriteFailure, _) => {
                format!("the output is longer than {LONGEST} bytes, or a value in it is not text")
            }
            (None, kind, _) => kind.to_string(),
        };
        Fault { line, message }
    }
}

/// The syntax: MiniJinja's own, but that the last newline of a file stays.
fn syntax() -> SyntaxConfig {
    match SyntaxConfig::builder().keep_trailing_newline(true).build() {
        Ok(syntax) => syntax,
        Err(error) => unreachable!("the usual delimiters are valid: {error}"),
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax());
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(STEPS));
    filters::add(&mut environment);
    environment
}

#[cfg(test)]
mod tests;
