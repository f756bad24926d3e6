//! A web server of our own, for what is too small to need a real one.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
};

/// What it answers.
pub struct Reply {
    pub status: &'static str,
    /// Header lines, each with its end.
    pub headers: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn new(status: &'static str, headers: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: headers.to_owned(),
            body: body.into(),
        }
    }
}

/// Answers every request's head, as `GET /path HTTP/1.1` and header lines, by `answer`; gives its URL.
pub fn serve(answer: impl Fn(&str) -> Reply + Send + 'static) -> String {
    serve_at("127.0.0.1:0", answer)
}

/// The same at an address.
pub fn serve_at(address: &str, answer: impl Fn(&str) -> Reply + Send + 'static) -> String {
    let listener = TcpListener::bind(address).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n")
                && lines.read_line(&mut head).is_ok_and(|length| length > 0)
            {}
            let Reply {
                status,
                headers,
                body,
            } = answer(&head);
            let length = body.len();
            // Whoever went away needs no answer.
            let _ = write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")
                .and_then(|()| stream.write_all(&body));
        }
    });
    url
}

/// A header's value in a request's head.
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
