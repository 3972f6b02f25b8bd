package demo;

import com.alipay.sofa.rpc.api.future.SofaResponseFuture;
import com.alipay.sofa.rpc.common.RpcConstants;
import com.alipay.sofa.rpc.config.ConsumerConfig;
import com.alipay.sofa.rpc.config.MethodConfig;
import com.alipay.sofa.rpc.context.RpcInvokeContext;
import com.alipay.sofa.rpc.core.exception.SofaRpcException;
import com.alipay.sofa.rpc.core.invoke.SofaResponseCallback;
import com.alipay.sofa.rpc.core.request.RequestBase;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * An ordinary SOFARPC consumer that invokes methods in every way that there is; see Load for what it calls and prints, and
 * Registry for the system properties. A callback's error counts as Load counts those that are thrown: one of the RPC if it
 * came as such, in onSofaException.
 */
public final class Consumer {
    /** Less than what stall is asked to take, in milliseconds. */
    private static final int IMPATIENCE = 300;

    private Consumer() {
    }

    private static Person person() {
        Person p = new Person();
        p.name = "Zo\u00eb \u4e2d";
        p.age = 41;
        p.id = 1234567890123L;
        p.tags = new ArrayList<>(List.of("x", "y"));
        return p;
    }

    private static MethodConfig method(String name) {
        return new MethodConfig().setName(name);
    }

    /** A callback that completes the future of the thread that began the call. */
    private static final class Callback implements SofaResponseCallback<Object> {
        private final CompletableFuture<Object> result;

        Callback(CompletableFuture<Object> result) {
            this.result = result;
        }

        @Override
        public void onAppResponse(Object response, String method, RequestBase request) {
            result.complete(response);
        }

        @Override
        public void onAppException(Throwable e, String method, RequestBase request) {
            result.completeExceptionally(new IllegalStateException("in onAppException: " + e));
        }

        @Override
        public void onSofaException(SofaRpcException e, String method, RequestBase request) {
            result.completeExceptionally(e);
        }
    }

    /** Attaches to the next call, as headers, what the system property "attachments" says: NAME=VALUE, separated by commas. */
    private static void attach() {
        for (String pair : System.getProperty("attachments", "").split(",")) {
            int at = pair.indexOf('=');
            if (at > 0) {
                RpcInvokeContext.getContext().addCustomHeader(pair.substring(0, at), pair.substring(at + 1));
            }
        }
    }

    public static void main(String[] args) throws IOException {
        ConsumerConfig<HelloService> config = Registry.consumer(HelloService.class).setMethods(List.of(
                method("stall").setTimeout(IMPATIENCE),
                method("note").setInvokeType(RpcConstants.INVOKER_TYPE_ONEWAY),
                method("later").setInvokeType(RpcConstants.INVOKER_TYPE_FUTURE),
                method("callback").setInvokeType(RpcConstants.INVOKER_TYPE_CALLBACK)));
        HelloService hello = config.refer();

        AtomicInteger number = new AtomicInteger();
        Load load = new Load(Registry::code);
        load.method("sayHello", () -> hello.sayHello("world " + number.incrementAndGet()));
        load.method("echo", () -> {
            attach();
            return hello.echo(person(), 3);
        });
        load.method("fail", () -> hello.fail("no reason"));
        load.method("slow", () -> hello.slow(200));
        load.method("stall", () -> hello.stall(2 * IMPATIENCE));
        load.method("note", () -> {
            hello.note("something");
            return null;
        });
        load.method("later", () -> {
            hello.later("world " + number.incrementAndGet());
            return future();
        });
        load.method("callback", () -> {
            CompletableFuture<Object> result = new CompletableFuture<>();
            RpcInvokeContext.getContext().setResponseCallback(new Callback(result));
            hello.callback("world " + number.incrementAndGet());
            return called(result);
        });
        load.run();
    }

    /** The answer to the call that this thread has just begun. */
    private static Object future() throws Exception {
        try {
            return SofaResponseFuture.getResponse(3000, true);
        } catch (Exception | Error e) {
            throw e;
        } catch (Throwable e) {
            throw new AssertionError(e);
        }
    }

    private static Object called(CompletableFuture<Object> result) throws Exception {
        try {
            return result.get(5, TimeUnit.SECONDS);
        } catch (ExecutionException e) {
            throw (Exception) e.getCause();
        } catch (TimeoutException e) {
            throw new IllegalStateException("nobody has called back", e);
        }
    }
}
