//! HTTP on loopback, on a runtime of its own: `/metrics` and `/healthz`. Read-only.

use crate::metrics;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use undercroft_wire::StatusReport;

/// What is asked of the control thread.
#[derive(Debug)]
pub(crate) enum Question {
    /// Whether it answers at all: cheap, so that it may be asked every second.
    Alive(oneshot::Sender<()>),
    /// For a report.
    Report(oneshot::Sender<Box<StatusReport>>),
}

const MAX_CONNECTIONS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(5);

/// The web thread; it ends when the stop signal is dropped.
#[derive(Debug)]
pub(crate) struct Web {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// Serves `listener` until dropped.
    pub(crate) fn start(
        listener: TcpListener,
        reports: mpsc::Sender<Question>,
    ) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("web".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, reports) => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the web thread had panicked");
        }
    }
}

async fn accept(listener: TcpListener, reports: mpsc::Sender<Question>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "metrics are off"),
    };
    let room = std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = std::sync::Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a metrics connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let reports = reports.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, reports.clone()));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "metrics connection ended");
            }
            drop(place);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    reports: mpsc::Sender<Question>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => match ask(&reports, Question::Alive).await {
            Some(_) => text(StatusCode::OK, "ok\n".to_owned()),
            None => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the control thread is not answering\n".to_owned(),
            ),
        },
        (&Method::GET, "/metrics") => match ask(&reports, Question::Report).await {
            Some(report) => text(StatusCode::OK, metrics::encode(&report)),
            None => text(StatusCode::SERVICE_UNAVAILABLE, String::new()),
        },
        (&Method::GET, _) => text(StatusCode::NOT_FOUND, "try /metrics or /healthz\n".to_owned()),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "read-only\n".to_owned()),
    };
    Ok(response)
}

async fn ask<T>(
    reports: &mpsc::Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    tokio::time::timeout(PATIENCE, async {
        reports.send(question(sender)).await.ok()?;
        receiver.await.ok()
    })
    .await
    .ok()
    .flatten()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
