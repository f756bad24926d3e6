//! Bounds the text of a value before it is made.
//!
//! MiniJinja charges for a text once it exists. A list that contains another one many times over
//! takes little memory, and its text would take all that there is. So whatever makes text of values
//! measures them first: the output, filters, tests, and the operators `~` and `in`.

use std::sync::LazyLock;

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, Value, context, escape_formatter,
    machinery::{Instruction, Instructions},
    value::{ObjectRepr, Rest, ValueOrKwargs},
};

use super::{
    MAX_OUTPUT, TemplateError, filters,
    values::{SafeError, Secret},
};

/// The longest text of a value that contains others, in bytes.
const MAX_TEXT: usize = MAX_OUTPUT;
/// How deep values may be nested to become text. Nothing else refuses one that contains itself.
const MAX_DEPTH: usize = 1000;
/// What MiniJinja gives for one step, in bytes.
const BYTES_PER_STEP: usize = 64;
/// What counts for every value, with what separates it from the next one, in bytes.
const MIN_TEXT: usize = 8;
/// What counts for a value that may contain others: looking at one takes longer.
const MIN_OBJECT: usize = 64;

/// The filters that may make text of their input or arguments.
const FILTERS: &[&str] = &[
    "attr",
    "b64decode",
    "b64encode",
    "capitalize",
    "dictsort",
    "e",
    "envquote",
    "escape",
    "format",
    "fromjson",
    "groupby",
    "indent",
    "join",
    "lines",
    "lower",
    "map",
    "pprint",
    "quote",
    "reject",
    "rejectattr",
    "replace",
    "safe",
    "select",
    "selectattr",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "urlencode",
];
/// The tests that may.
const TESTS: &[&str] = &[
    "endingwith",
    "filter",
    "in",
    "lower",
    "startingwith",
    "test",
    "upper",
];
/// The filters that replace operators. No template can write these names.
const CONCATENATE: &str = "~";
const CONTAINS: &str = "<in>";
/// MiniJinja caches filters by number; this one stands for none.
const NOT_CACHED: u8 = u8::MAX;

/// The same filters and tests without bounds.
static UNBOUNDED: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = super::plain_environment();
    filters::add(&mut environment);
    environment
});

/// Bounds the filters, the tests and the output of an environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    for name in FILTERS {
        environment.add_filter(
            *name,
            move |state: &State<'_, '_>, arguments: Rest<ValueOrKwargs>| {
                delegate(state, arguments, |state, values| {
                    state.apply_filter(name, values)
                })
            },
        );
    }
    for name in TESTS {
        environment.add_test(
            *name,
            move |state: &State<'_, '_>, arguments: Rest<ValueOrKwargs>| {
                delegate(state, arguments, |state, values| {
                    state.perform_test(name, values)
                })
            },
        );
    }
    environment.add_filter(CONCATENATE, concatenate);
    environment.add_filter(CONTAINS, contains);
    environment.set_formatter(|out, state, value| {
        bound(state, value)?;
        escape_formatter(out, state, value)
    });
    // It shows everything that the template has.
    environment.remove_global("debug");
}

/// Replaces the operators that make text of values.
pub(super) fn replace_operators(instructions: &mut Instructions<'_>) {
    let mut at = 0;
    while let Some(instruction) = instructions.get_mut(at) {
        match instruction {
            Instruction::StringConcat => {
                *instruction = Instruction::ApplyFilter(CONCATENATE, Some(2), NOT_CACHED);
            }
            Instruction::In => {
                *instruction = Instruction::ApplyFilter(CONTAINS, Some(2), NOT_CACHED);
            }
            _ => {}
        }
        at += 1;
    }
}

/// Refuses comparisons of three values: an `in` among them could not be replaced.
pub(super) fn refuse_chains(instructions: &Instructions<'_>) -> Result<(), TemplateError> {
    let mut at = 0;
    while let Some(instruction) = instructions.get(at) {
        if matches!(instruction, Instruction::CompareAndPreserve(_)) {
            return Err(TemplateError {
                line: instructions.get_line(at),
                message: "a comparison has two sides; join several with `and`".into(),
            });
        }
        at += 1;
    }
    Ok(())
}

/// Measures the arguments of a filter or test, and charges for its work.
fn delegate<T>(
    state: &State<'_, '_>,
    arguments: Rest<ValueOrKwargs>,
    call: impl FnOnce(&mut State<'_, '_>, &[Value]) -> Result<T, Error>,
) -> Result<T, Error> {
    let values: Vec<Value> = arguments
        .0
        .into_iter()
        .map(ValueOrKwargs::into_value)
        .collect();
    for value in &values {
        bound(state, value)?;
    }
    let mut unbounded = UNBOUNDED.empty_state();
    let result = call(&mut unbounded, &values);
    charge(state, &unbounded)?;
    result
}

fn charge(state: &State<'_, '_>, other: &State<'_, '_>) -> Result<(), Error> {
    let (consumed, _) = other.fuel_levels().unwrap_or_default();
    state.consume_fuel(consumed)
}

fn concatenate(state: &mut State<'_, '_>, left: &Value, right: &Value) -> Result<Value, Error> {
    for side in [left, right] {
        if side.is_undefined() {
            return Err(ErrorKind::UndefinedError.into());
        }
        bound(state, side)?;
    }
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        state.consume_fuel((left.len() + right.len()) as u64 / BYTES_PER_STEP as u64)?;
    }
    let are_safe = [left, right].map(Value::is_safe);
    Ok(match are_safe {
        [true, true] => Value::from_safe_string(format!("{left}{right}")),
        // The one that is not safe is escaped, as in the output.
        [true, false] | [false, true] if !matches!(state.auto_escape(), AutoEscape::None) => {
            let [left, right] = [state.format(left.clone())?, state.format(right.clone())?];
            Value::from_safe_string(left + &right)
        }
        _ => Value::from(format!("{left}{right}")),
    })
}

fn contains(state: &State<'_, '_>, value: &Value, container: &Value) -> Result<Value, Error> {
    bound(state, value)?;
    let size = container.as_str().map_or_else(
        || container.len().unwrap_or_default(),
        |text| text.len() / BYTES_PER_STEP,
    );
    state.consume_fuel(size as u64)?;
    let expression = UNBOUNDED.compile_expression("value in container")?;
    expression.eval(context! { value, container })
}

/// Refuses a value whose text would be too long, and charges for looking.
fn bound(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.as_object().is_none() {
        return Ok(());
    }
    let mut length = 0;
    let measured = measure(value, MAX_DEPTH, &mut length);
    state.consume_fuel((length / BYTES_PER_STEP) as u64)?;
    measured
}

/// Adds the length of a value's text to `length`, until that is too long.
fn measure(value: &Value, depth: usize, length: &mut usize) -> Result<(), Error> {
    *length += if value.as_object().is_some() {
        MIN_OBJECT
    } else {
        MIN_TEXT
    };
    if depth == 0 {
        return Err(SafeError::error("a value is nested too deeply"));
    }
    let mut add = |part: &Value| measure(part, depth - 1, length);
    match value.as_object() {
        Some(object) => match object.repr() {
            ObjectRepr::Map => {
                for (key, member) in object.try_iter_pairs().into_iter().flatten() {
                    add(&key)?;
                    add(&member)?;
                }
            }
            ObjectRepr::Seq | ObjectRepr::Iterable => {
                for item in object.try_iter().into_iter().flatten() {
                    add(&item)?;
                }
            }
            _ => {
                *length += value
                    .downcast_object_ref::<Secret>()
                    .map_or(0, Secret::text_len);
            }
        },
        None => *length += value.as_bytes().map_or(0, written),
    }
    if *length > MAX_TEXT {
        let message = format!("the text of a value exceeds {MAX_TEXT} bytes");
        return Err(SafeError::error(message));
    }
    Ok(())
}

/// The length of text in quotes. What can't be printed takes up to ten bytes.
fn written(text: &[u8]) -> usize {
    let length = |byte: &u8| match byte {
        b' '..=b'~' => 1,
        0x80.. => 3,
        _ => 10,
    };
    text.iter().map(length).sum()
}
