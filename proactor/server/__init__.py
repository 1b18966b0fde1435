"""HTTP: OpenAI's interface, tokens, metrics.

`app.create_app` puts the routers together; `serving.Serving` is what they share. Needs the extra ``serve``.
"""
