package demo;

import com.alipay.sofa.rpc.config.RegistryConfig;

/** The registry that the system properties registry.protocol (zookeeper or sofa) and registry.address name. */
final class Registry {
    private Registry() {
    }

    static RegistryConfig configured() {
        return new RegistryConfig().setProtocol(System.getProperty("registry.protocol"))
                .setAddress(System.getProperty("registry.address"));
    }
}
