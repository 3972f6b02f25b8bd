package demo;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ConsumerConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.core.exception.SofaRpcException;
import java.util.ArrayList;
import java.util.List;
import java.util.OptionalInt;

/** What the system properties say of the registry and of consumers. */
final class Registry {
    private Registry() {
    }

    /**
     * The registry that registry.protocol (zookeeper or sofa) and registry.address name, and the second one, if there is
     * one, that registry2.protocol and registry2.address do.
     */
    static List<RegistryConfig> configured() {
        List<RegistryConfig> registries = new ArrayList<>();
        for (String prefix : List.of("registry", "registry2")) {
            if (System.getProperty(prefix + ".protocol") != null) {
                registries.add(new RegistryConfig().setProtocol(System.getProperty(prefix + ".protocol"))
                        .setAddress(System.getProperty(prefix + ".address")));
            }
        }
        return registries;
    }

    /**
     * A consumer: app.name, protocol (bolt unless it is said), unique.id (optional), retries (optional), and the registry or,
     * in its place, direct.url, such as bolt://10.99.0.1:12200.
     */
    static <T> ConsumerConfig<T> consumer(Class<T> service) {
        ConsumerConfig<T> config = new ConsumerConfig<T>()
                .setApplication(new ApplicationConfig().setAppName(System.getProperty("app.name", "hello-consumer")))
                .setInterfaceId(service.getName())
                .setProtocol(System.getProperty("protocol", "bolt"))
                .setTimeout(3000)
                .setRetries(Integer.getInteger("retries", 0))
                .setAddressWait(10000);
        if (System.getProperty("unique.id") != null) {
            config.setUniqueId(System.getProperty("unique.id"));
        }
        if (System.getProperty("direct.url") != null) {
            config.setDirectUrl(System.getProperty("direct.url"));
        } else {
            config.setRegistry(configured());
        }
        return config;
    }

    /** The type of an error of the RPC, for Load. */
    static OptionalInt code(Throwable e) {
        return e instanceof SofaRpcException ? OptionalInt.of(((SofaRpcException) e).getErrorType()) : OptionalInt.empty();
    }
}
